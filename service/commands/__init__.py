"""What each command does; cli.py only names commands and options."""
