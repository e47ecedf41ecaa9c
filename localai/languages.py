"""Languages by their ISO 639-1 codes: those that some model is known to speak have names, too."""

from __future__ import annotations

import difflib

from localai.errors import UsageError

# ISO 639-1, every code.
_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en"
    " eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv"
    " ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne"
    " ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st"
    " su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
CODES = frozenset(_CODES.split())
_NAMES = {
    "ar": ("Arabic", "العربية"),
    "cs": ("Czech", "čeština"),
    "da": ("Danish", "dansk"),
    "de": ("German", "Deutsch"),
    "en": ("English", "English"),
    "es": ("Spanish", "español"),
    "fi": ("Finnish", "suomi"),
    "fr": ("French", "français"),
    "he": ("Hebrew", "עברית"),
    "hi": ("Hindi", "हिन्दी"),
    "hu": ("Hungarian", "magyar"),
    "it": ("Italian", "italiano"),
    "ja": ("Japanese", "日本語"),
    "ko": ("Korean", "한국어"),
    "nl": ("Dutch", "Nederlands"),
    "no": ("Norwegian", "norsk"),
    "pl": ("Polish", "polski"),
    "pt": ("Portuguese", "português"),
    "ru": ("Russian", "русский"),
    "sv": ("Swedish", "svenska"),
    "th": ("Thai", "ไทย"),
    "tr": ("Turkish", "Türkçe"),
    "uk": ("Ukrainian", "українська"),
    "zh": ("Chinese", "中文"),
}
_BY_NAME = {name.casefold(): code for code, names in _NAMES.items() for name in names} | {"francais": "fr"}


def code_of(text: str) -> str:
    """The code of a language given by its code (`fr`, also `fr_FR` or `fr-CA`), or by its name in English or its own.

    Raises UsageError for what is none.
    """
    word = text.strip().casefold()
    code = word.replace("_", "-").partition("-")[0]
    if code in CODES:
        return code
    if word in _BY_NAME:
        return _BY_NAME[word]
    near = difflib.get_close_matches(word, _BY_NAME, n=1)
    raise UsageError(
        f"{text!r} is no language",
        f"did you mean {_BY_NAME[near[0]]}? ({near[0]})"
        if near
        else "give a code of two letters, such as en, fr or de",
    )


def name_of(code: str) -> str:
    """The English name of a language where it has one here, else its code."""
    return _NAMES[code][0] if code in _NAMES else code
