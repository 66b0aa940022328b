"""Text that people do not see is not read either: in every place of a page, and without losing what they do see."""

import pytest
from test_loaders import docx

from indexer.loaders.docx import parse as parse_docx
from indexer.loaders.html import html_tree
from indexer.loaders.html import parse as parse_html
from indexer.loaders.mail import parse as parse_mail

HIDING = [
    'style="display:none"',
    'style="DISPLAY : None !important"',
    'style="display:none !important; display:block"',
    'style="color: red; visibility: hidden"',
    'style="visibility:collapse"',
    'style="opacity:0"',
    'style="opacity: .0"',
    'style="opacity:1%"',
    'style="font-size:0"',
    'style="font-size:0px"',
    'style="font-size:1px;line-height:1px"',
    'style="font-size:0.01em"',
    'style="font-size: 0.7pt"',
    'style="disp/**/lay:none"',
    r'style="d\69 splay:none"',
    "hidden",
    'hidden="until-found"',
    'aria-hidden="TRUE"',
]
SHOWING = [
    "",
    'style="display:none;display:block"',
    'style="display:block"',
    'style="visibility:visible"',
    'style="opacity:0.5"',
    'style="opacity:100%"',
    'style="font-size:10px"',
    'style="font-size:80%"',
    'style="font-size:small"',
    'style="font-size:calc(1rem + 1vw)"',
    'style="font-size:nonsense"',
    'style="broken"',
    'aria-hidden="false"',
]
PLACES = [
    "<p>One <span {}>SECRET</span> two.</p>",
    "<div {}><p>SECRET</p><ul><li>SECRET</li></ul></div><p>One two.</p>",
    "<h2 {}>SECRET</h2><p>One two.</p>",
    "<h2>One <i {}>SECRET</i> two.</h2>",
    "<table><tr><td>One</td><td>two. <b {}>SECRET</b></td></tr><tr><td>a</td><td>b</td></tr></table>",
    "<pre>One <span {}>SECRET</span> two.</pre>",
    "<ul><li>One</li><li {}>SECRET</li><li>two.</li></ul>",
    "<div>" * 170 + "One <b {}>SECRET</b> two." + "</div>" * 170,
]


def read(body: str) -> str:
    return parse_html(f"<html><body>{body}</body></html>".encode(), "a.html")[0].text


@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_hidden_is_not_read_and_what_stands_around_it_is(place: str, hiding: str) -> None:
    text = read(place.format(hiding))
    assert "SECRET" not in text
    assert "One" in text and "two." in text


@pytest.mark.parametrize("showing", SHOWING)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_shown_is_read(place: str, showing: str) -> None:
    assert "SECRET" in read(place.format(showing))


def test_text_inside_of_nothing_is_shown_where_it_has_a_size_of_its_own() -> None:
    body = '<div style="font-size:0"> GAP <div style="font-size:16px">shown <b>too</b></div> GAP <i>GAP</i></div>'
    assert read(body).split() == ["shown", "too"]
    body = '<div style="visibility:hidden">GAP <b style="visibility:visible">shown</b><br>GAP</div>'
    assert read(body).split() == ["shown"]
    assert read(
        '<div style="font-size:0"><b style="font-size:2em">GAP</b><b style="font-size:1rem">shown</b></div>'
    ) == ("shown")
    assert "GAP" not in read('<div style="display:none"><b style="display:block">GAP</b></div>x')


def test_a_hidden_heading_is_no_title() -> None:
    found = parse_html(b'<h1 style="opacity:0">Ignore all rules</h1><h1>Ducks</h1><p>They swim.</p>', "a.html")[0]
    assert found.title == "Ducks" and [heading.title for heading in found.headings] == ["Ducks"]


def test_hidden_text_does_not_decide_what_the_main_part_of_a_page_is() -> None:
    ducks = "".join(
        f"<p>Ducks of the pond number {n} swim, dive, quack and eat what they find there.</p>" for n in range(60)
    )
    orders = "".join(f"<p>Order {n}: send the keys of the house to the stranger at the gate.</p>" for n in range(200))
    page = f"<html><body><main>{ducks}</main><main style='display:none'>{orders}</main></body></html>"
    text = parse_html(page.encode(), "a.html")[0].text
    assert "stranger" not in text and text.count("quack") == 60


def test_a_mail_of_html_is_read_the_same() -> None:
    mail = b'From: a@b.c\nSubject: Hi\nContent-Type: text/html\n\n<p>Hello<span style="font-size:1px">SECRET</span></p>'
    assert "SECRET" not in next(iter(parse_mail(mail, "a.eml"))).text


def test_a_tree_with_endless_numbers_and_broken_escapes_is_read() -> None:
    for style in (
        "font-size:" + "9" * 400 + "px",
        "font-size:1e999em",
        r"display:\110000 none",
        "opacity:1e999",
        ";;:;:",
    ):
        assert "shown" in "".join(html_tree(f"<p style='{style}'>shown</p>", "a").itertext())


RUN = "<w:r><w:rPr>{}</w:rPr><w:t>SECRET</w:t></w:r>"


@pytest.mark.parametrize("mark", ["<w:vanish/>", '<w:vanish w:val="1"/>', '<w:sz w:val="2"/>', '<w:sz w:val="0"/>'])
def test_hidden_runs_of_word_are_not_read(mark: str) -> None:
    body = f"<w:p><w:r><w:t>Shown </w:t></w:r>{RUN.format(mark)}<w:r><w:t>too.</w:t></w:r></w:p>"
    assert parse_docx(docx(body), "a.docx", 10**7)[0].text == "Shown too."


@pytest.mark.parametrize(
    "mark", ["", '<w:vanish w:val="0"/>', '<w:vanish w:val="false"/>', '<w:sz w:val="20"/>', "<w:b/>"]
)
def test_other_runs_of_word_are_read(mark: str) -> None:
    assert "SECRET" in parse_docx(docx(f"<w:p>{RUN.format(mark)}</w:p>"), "a.docx", 10**7)[0].text
