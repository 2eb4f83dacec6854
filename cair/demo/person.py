"""A person at a browser, as a program: reads pages, fills forms in by the names of their fields, presses buttons.

The demo plays its user with it, and the tests play theirs. It knows HTML and cookies, and nothing of CAIR.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

import requests

MOST_REDIRECTS = 10
SECONDS = 10.0


class NoSuchButton(LookupError):
    """The page has no such button: it is another page than the person expected."""


@dataclass(frozen=True)
class Field:
    """One control of a form."""

    kind: str
    name: str
    value: str
    is_ticked: bool = False


@dataclass
class Form:
    """A form as it stands on the page. Buttons are pairs of name and value; `about` is what its button is described by."""

    method: str
    action: str
    fields: list[Field] = field(default_factory=list)
    buttons: list[tuple[str, str]] = field(default_factory=list)
    described_by: str = ""
    about: str = ""

    def filled_in(self, fill: Mapping[str, str], untick: Collection[str]) -> list[tuple[str, str]]:
        """What a browser would send of the fields: ticked boxes only, each under its name, in the page's order."""
        sent = []
        for control in self.fields:
            if control.kind in ("checkbox", "radio"):
                if control.is_ticked and control.value not in untick:
                    sent.append((control.name, control.value))
            else:
                sent.append((control.name, fill.get(control.name, control.value)))
        return sent


class _Reader(HTMLParser):
    """Collects what a person can see of a page, and what they can press."""

    SILENT = frozenset({"script", "style", "title"})
    VOID = frozenset({"meta", "link", "input", "img", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[str] = []
        self.title, self.words = "", list[str]()
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, str]] = []
        self._form: Form | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        got = {name: value or "" for name, value in attributes}
        if tag not in self.VOID:
            self._open.append((tag, got.get("id", "")))
        if tag == "form":
            self._form = Form(got.get("method", "get").lower(), got.get("action", ""))
            self.forms.append(self._form)
        elif tag == "a" and "href" in got:
            self.links.append(got["href"])
        elif self._form is not None and tag in ("input", "button"):
            self._control(self._form, tag, got, "checked" in dict(attributes))

    def _control(self, form: Form, tag: str, got: Mapping[str, str], is_ticked: bool) -> None:
        kind = got.get("type", "submit" if tag == "button" else "text")
        if kind == "submit":
            form.buttons.append((got.get("name", ""), got.get("value", "")))
            form.described_by = got.get("aria-describedby", form.described_by)
        elif got.get("name"):
            form.fields.append(Field(kind, got["name"], got.get("value", ""), is_ticked))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        while self._open and tag not in self.VOID:
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self._open]
        if "title" in tags:
            self.title += data
        if not self.SILENT & set(tags):
            self.words.append(data)
        for _, name in self._open:
            if name:
                self.texts.setdefault(name, []).append(data)


def _joined(words: Iterable[str]) -> str:
    return " ".join(" ".join(words).split())


@dataclass(frozen=True)
class Page:
    """What a browser shows: or, where `left` is not empty, the address outside that it was sent to."""

    url: str
    status: int
    headers: Mapping[str, str]
    html: str = ""
    left: str = ""
    title: str = ""
    text: str = ""
    forms: tuple[Form, ...] = ()
    links: tuple[str, ...] = ()

    @classmethod
    def read(cls, response: requests.Response) -> "Page":
        reader = _Reader()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            reader.feed(response.text)
        for form in reader.forms:
            form.about = _joined(reader.texts.get(form.described_by, []))
        title, text = _joined([reader.title]), _joined(reader.words)
        found = (tuple(reader.forms), tuple(reader.links))
        return cls(response.url, response.status_code, response.headers, response.text, "", title, text, *found)

    def form_with(self, button: str, about: str = "") -> Form:
        """The form whose button has this value (and is described by these words). Raises NoSuchButton."""
        for form in self.forms:
            if any(value == button for _, value in form.buttons) and (not about or form.about == about):
                return form
        raise NoSuchButton(
            f"“{self.title or self.left or self.url}” ({self.status}) has no button {button!r} {about}".strip()
        )

    def has_button(self, button: str) -> bool:
        return any(value == button for form in self.forms for _, value in form.buttons)


class Browser:
    """One browser: its cookies, and the origins it stays on. A redirect to anywhere else is where the person left."""

    def __init__(self, *origins: str, follow_to: Collection[str] = ()) -> None:
        self.origins = {*origins, *follow_to}
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Accept"] = "text/html,application/xhtml+xml"

    def open(self, url: str) -> Page:
        return self._follow(requests.Request("GET", url))

    def press(
        self,
        page: Page,
        button: str,
        *,
        fill: Mapping[str, str] | None = None,
        untick: Collection[str] = (),
        about: str = "",
    ) -> Page:
        """Fill in the form that has this button, press it, and show what comes."""
        form = page.form_with(button, about)
        pressed = next(pair for pair in form.buttons if pair[1] == button)
        sent = [*form.filled_in(fill or {}, untick), pressed]
        target = urljoin(page.url, form.action)
        if form.method == "get":
            return self._follow(requests.Request("GET", target, params=sent))
        headers = {"Origin": _origin_of(page.url), "Referer": page.url}
        return self._follow(requests.Request("POST", target, data=sent, headers=headers))

    def _follow(self, request: requests.Request) -> Page:
        response = self._send(request)
        for _ in range(MOST_REDIRECTS):
            target = response.headers.get("Location")
            if target is None:
                return Page.read(response)
            target = urljoin(response.url, target)
            if _origin_of(target) not in self.origins:
                return Page(response.url, response.status_code, response.headers, left=target)
            response = self._send(requests.Request("GET", urldefrag(target).url))
        raise NoSuchButton(f"{request.url} redirects without end")

    def _send(self, request: requests.Request) -> requests.Response:
        return self.session.send(self.session.prepare_request(request), allow_redirects=False, timeout=SECONDS)


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
