# ruff: noqa: RUF001 - letters that are mistaken for others are what this is about
"""Names that pass for others. A client's name is its own word, and many letters look like another (T31, UTS #39).

Two names look alike if their skeletons are equal: marks, case and what separates words are gone, and each letter stands
for all that it is mistaken for. The table below is drawn from Unicode's confusables.txt, for the alphabets that pass for
Latin; it is coarser than that list (`I`, `l` and `1` are one letter), and it does not know shapes that only some fonts
share. So a warning is a reason to look, and none is no proof.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from oauth_relay import redirect_uris

THIS_DEVICE = "this device"

_LOOKS_LIKE = {
    "a": "аαɑɒᴀꭺꓮᎪӕæ",
    "b": "вьƅбβᏴᏼꓐꞵʙ",
    "c": "сϲᴄϹⲥᏟꮯꓚ",
    "d": "ԁժᏧꮷᎠꭰđꓒꓓᴅ",
    "e": "еҽєεëᎬꭼꓰꬲᴇəɛ",
    "f": "ẝꞙϝꬵƒꓝք",
    "g": "ɡցգԍᶃᏀᏳꓖ",
    "h": "һհΗНнᏂꮒᎻꓧħʜ",
    "j": "јϳյᎫꭻꓙᴊ",
    "k": "кκᏦꮶꓗĸᴋⲕ",
    "l": "1|iіıιɩɪӏꞌӀᏞꮮꓲꓡӀǀłʟⲓᎥꭵꙇƖ",
    "m": "мϺᎷꮇꓟᴍⲙ",
    "n": "ոռпηⲛꓠɴ",
    "o": "0оοσօᴏᴑꬽⲟꓳøœѳⵔ٥۵०০੦૦",
    "p": "рρϱⲣᏢꮲꓑᴘþ",
    "q": "ԛզգ",
    "r": "гᴦꭇꭈᎡꭱᏒꮢꓣʀⲅя",
    "s": "ѕꜱƽՏᏕꮥᏚꮪꓢ",
    "t": "тτᎢꭲꓔᴛŧⲧ",
    "u": "υսʋꭎᴜꞟцսꓴμ",
    "v": "ѵνᏙꮩꓦᴠ",
    "w": "ѡԝաɯᴡᎳꮃᏔꮤꓪωшщ",
    "x": "хχΧᕁⲭꓫ",
    "y": "уүγʏỿүᎩᎽꓬɣ",
    "z": "ᴢΖᏃꮓꓜʐ",
}
_LETTER = {**{like: letter for letter, alike in _LOOKS_LIKE.items() for like in alike}, "Η": "h", "Ν": "n", "Υ": "y"}
_PAIRS = (("rn", "m"), ("vv", "w"))
_LONGEST = 20
"""Words, or letters spelt apart, of which one brand may be made."""

# UTS #39 §5.2, “highly restrictive”: what one language writes together.
_WRITTEN_TOGETHER = frozenset("LATIN CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA HANGUL BOPOMOFO IDEOGRAPHIC".split())
_UNSEEN_CATEGORIES = frozenset({"Cf", "Cc", "Co", "Cs", "Cn", "Zl", "Zp"})
_BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u2800\u3164\uffa0")
_JOINERS = frozenset("\u200c\u200d")
_EUROPEAN = frozenset({"LATIN", "CYRILLIC", "GREEK"})
_EMOJI_STYLE = frozenset("\ufe0e\ufe0f")


@dataclass(frozen=True)
class Brand:
    """A name that people trust, and where its own clients are answered. A leading dot means every host below."""

    name: str
    hosts: tuple[str, ...]
    schemes: tuple[str, ...] = ()

    def owns(self, host: str) -> bool:
        host = host.lower().rstrip(".")
        return any(host == own.lstrip(".") or (own[0] == "." and host.endswith(own)) for own in self.hosts)

    def is_at(self, redirect_uri: str, verified_host: str | None) -> bool:
        """Whether a client answered there, or known to be of that host, is this brand's own."""
        parts = urlsplit(redirect_uri)
        if redirect_uris.is_custom_scheme(redirect_uri) and parts.scheme in self.schemes:
            return True
        return self.owns(parts.hostname or "") or self.owns((verified_host or "").partition(":")[0])


# Never a host below which strangers have pages or tenants (googleapis.com, auth0.com …).
_ANTHROPIC = (".claude.ai", ".claude.com", ".anthropic.com")
_OPENAI = (".openai.com", ".chatgpt.com")
_MICROSOFT = (".microsoft.com", ".vscode.dev", "copilot.cloud.microsoft", "login.microsoftonline.com")
BRANDS = (
    Brand("Claude", _ANTHROPIC, ("claude",)),
    Brand("Anthropic", _ANTHROPIC, ("claude",)),
    Brand("ChatGPT", _OPENAI),
    Brand("OpenAI", _OPENAI),
    Brand("Codex", _OPENAI),
    Brand("Cursor", (".cursor.com", ".cursor.sh"), ("cursor",)),
    Brand("Visual Studio Code", _MICROSOFT, ("vscode", "vscode-insiders")),
    Brand("VS Code", _MICROSOFT, ("vscode", "vscode-insiders")),
    Brand("GitHub", ("github.com", ".githubcopilot.com"), ("vscode", "vscode-insiders", "x-github-client")),
    Brand("Copilot", (*_MICROSOFT, "github.com", ".githubcopilot.com"), ("vscode", "vscode-insiders")),
    Brand("Microsoft", _MICROSOFT, ("vscode", "vscode-insiders")),
    Brand("Windsurf", (".windsurf.com", ".codeium.com"), ("windsurf", "windsurf-next")),
    Brand("Gemini", ("gemini.google.com", "aistudio.google.com", "google.com", "accounts.google.com")),
    Brand("Google", ("gemini.google.com", "aistudio.google.com", "google.com", "accounts.google.com")),
    Brand("Auth0", ("auth0.com", "manage.auth0.com")),
    Brand("Perplexity", (".perplexity.ai",), ("perplexity",)),
    Brand("Mistral", (".mistral.ai",)),
    Brand("Grok", (".grok.com", ".x.ai")),
    Brand("JetBrains", (".jetbrains.com",), ("jetbrains",)),
    Brand("Zed", (".zed.dev",), ("zed",)),
)


@dataclass(frozen=True)
class KnownClient:
    """Another client that this person has connected, and the places where it may be answered."""

    name: str
    places: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class NameWarning:
    """`kind` is for the audit, the sentence for the person."""

    kind: str
    sentence: str


def place_of(redirect_uri: str) -> str:
    """Where an answer goes, as far as two clients can differ in it: a loopback client has another port each time."""
    if redirect_uris.is_loopback_redirect(redirect_uri):
        return THIS_DEVICE
    return redirect_uris.host_of(redirect_uri).lower()


def warnings_for(
    name: str, redirect_uri: str, *, verified_host: str | None = None, known: Iterable[KnownClient] = ()
) -> list[NameWarning]:
    """What a person should be told of a name before they trust it; mostly nothing."""
    named = _brands_in(name)
    disguised = _disguised(name, named)
    at_home = any(brand.is_at(redirect_uri, verified_host) for brand in named)
    found = [_unseen(name), _mixed(name), disguised or (None if at_home else _foreign(named, redirect_uri))]
    if not at_home:
        found += [_twin(name, redirect_uri, known)]
    return [warning for warning in found if warning is not None]


def _unseen(name: str) -> NameWarning | None:
    if any(_is_unseen(name[:at][-1:], character) for at, character in enumerate(name)):
        sentence = "Its name holds characters that cannot be seen, or that change the direction of writing."
        return NameWarning("unseen_characters", sentence)
    return None


def _mixed(name: str) -> NameWarning | None:
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", name))
    if any(not alphabets <= _WRITTEN_TOGETHER and len(alphabets) > 1 for alphabets in map(_alphabets, words)):
        sentence = "Its name mixes letters of different alphabets, as a name does that wants to pass for another."
        return NameWarning("mixed_alphabets", sentence)
    return None


def _brands_in(name: str) -> list[Brand]:
    looks = _runs(_words(name, _skeleton))
    return [brand for brand in BRANDS if _joined(brand.name, _skeleton) in looks]


def _disguised(name: str, named: Iterable[Brand]) -> NameWarning | None:
    says = _runs(_words(name, _plain))
    for brand in named:
        if _joined(brand.name, _plain) not in says:
            return NameWarning("disguised_brand", f"Its name looks like “{brand.name}”, but is written differently.")
    return None


def _foreign(named: Sequence[Brand], redirect_uri: str) -> NameWarning | None:
    """A name that people trust, answered somewhere else. Whose program listens on this device, nobody can say at all."""
    if not named or redirect_uris.is_loopback_redirect(redirect_uri):
        return None
    host = redirect_uris.host_of(redirect_uri)
    return NameWarning("foreign_brand", f"It calls itself {named[0].name}, but its answer goes to {host}.")


def _twin(name: str, redirect_uri: str, known: Iterable[KnownClient]) -> NameWarning | None:
    """A name that another client of this person has, or one that cannot be told from it."""
    here, looks = place_of(redirect_uri), _joined(name, _skeleton)
    for other in known:
        if looks and looks == _joined(other.name, _skeleton) and other.places and here not in other.places:
            there = ", ".join(sorted(other.places))
            sentence = (
                f"You have connected another client of this name, which is answered at {there}. This one is not it."
            )
            return NameWarning("twin", sentence)
    return None


# -- letters -----------------------------------------------------------------------------------------------------------


def _is_unseen(before: str, character: str) -> bool:
    """Whether nobody can see this character. Joiners belong to some scripts, and to emoji, but to no European word."""
    if character in _JOINERS or character in _EMOJI_STYLE:
        belongs = before and (
            unicodedata.category(before) in ("So", "Sk", "Mn", "Mc") or _alphabets(before) - _EUROPEAN
        )
        return not belongs
    return character in _BLANK_LETTERS or unicodedata.category(character) in _UNSEEN_CATEGORIES


def _alphabets(word: str) -> set[str]:
    """The scripts of a word's letters, by the first word of their Unicode names: the standard library has no table."""
    return {unicodedata.name(one, "?").split()[0] for one in word if unicodedata.category(one)[0] == "L"} - {"MODIFIER"}


def _skeleton(word: str) -> str:
    """UTS #39 §4, coarser: what remains of a word when only its shapes count."""
    letters = [one for one in unicodedata.normalize("NFKD", word) if not unicodedata.combining(one)]
    shapes = "".join(_LETTER.get(one) or "".join(_LETTER.get(low, low) for low in one.casefold()) for one in letters)
    for pair, letter in _PAIRS:
        shapes = shapes.replace(pair, letter)
    return shapes


def _plain(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()


def _words(name: str, spell: Callable[[str], str]) -> list[str]:
    """The words of a name, each as `spell` writes it; ChatGPT is two."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall(r"[^\W\d_]+", " ".join(spell(part) for part in apart.split()))


def _joined(name: str, spell: Callable[[str], str]) -> str:
    return "".join(_words(name, spell))


def _runs(words: Sequence[str]) -> set[str]:
    """Every row of neighbouring words, written as one: a brand may be spelt apart."""
    rows = (
        "".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)[:_LONGEST]
    )
    return set(rows)
