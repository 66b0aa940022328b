"""The interface of OpenAI over the same answerer: what its clients and chat front ends need to ask documents."""
