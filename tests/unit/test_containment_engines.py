"""The rules mean the same in the engines that the rule file names: tried in PCRE2 and Java where these are installed."""

import ctypes
import ctypes.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.containment import ENGINES, SENTENCE, different, rules, variants
from tests.unit.test_containment import TRIGGERS

UTF, UCP, CASELESS = 0x00080000, 0x00020000, 0x00000008
BESIDE = [
    *"7éжα\u0301\u05b9ש\u064bس\u093e\u0bcdक字か한ก_\u203f\uff3f",
    *"\u200d\u3164\ufe0f\u034f-'\u0964\U00020000\U0001d400",
]
"""Letters, digits, marks and characters without width that may stand beside a unit."""
JAVA = """
import java.io.*; import java.nio.charset.StandardCharsets; import java.util.HexFormat; import java.util.regex.Pattern;
class Rules {
    public static void main(String[] none) throws IOException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null;) {
            String[] given = line.split(" ", -1);
            int any = given[1].equals("i") ? Pattern.CASE_INSENSITIVE | Pattern.UNICODE_CASE : 0;
            Pattern rule = Pattern.compile(text(given[0]), Pattern.UNICODE_CHARACTER_CLASS | any);
            System.out.println(rule.matcher(text(given[2])).find());
        }
    }
    static String text(String hex) { return new String(HexFormat.of().parseHex(hex), StandardCharsets.UTF_8); }
}
"""


def searches() -> Iterator[tuple[str, str, str, bool]]:
    """Yield (expression, flags, text, whether Python finds it) for variants and near-misses of every trigger."""
    for units in TRIGGERS:
        texts = [text for _, text in variants(units)] + different(units)
        texts += [SENTENCE.format(text) for text in texts]
        texts += [text.replace(" ", other) for text in texts for other in ("\u00a0\u2003", "\x1c", "-")]
        texts += [beside + " ".join(units) for beside in BESIDE] + [" ".join(units) + beside for beside in BESIDE]
        for rule in rules(units).rules:
            for text in dict.fromkeys(texts):
                yield rule.regex, rule.flags, text, bool(rule.compiled().search(text))


def test_pcre2_finds_what_python_finds() -> None:
    """With UTF and UCP, as `ENGINES` says."""
    assert "PCRE2 with UTF and UCP" in ENGINES
    name = ctypes.util.find_library("pcre2-8")
    if name is None:
        pytest.skip("PCRE2 is not installed")
    library = ctypes.CDLL(name)
    for function in ("pcre2_compile_8", "pcre2_match_data_create_8"):
        getattr(library, function).restype = ctypes.c_void_p
    size, fault, at = ctypes.c_size_t, ctypes.c_int(), ctypes.c_size_t()
    matched = ctypes.c_void_p(library.pcre2_match_data_create_8(20, None))
    rule, code = "", ctypes.c_void_p()
    for regex, flags, text, found in searches():
        if regex != rule:
            options, data = UTF | UCP | (CASELESS if flags else 0), regex.encode()
            compiled = library.pcre2_compile_8(
                data, size(len(data)), options, ctypes.byref(fault), ctypes.byref(at), None
            )
            assert compiled, regex
            rule, code = regex, ctypes.c_void_p(compiled)
        data = text.encode()
        n = library.pcre2_match_8(code, data, size(len(data)), size(0), 0, matched, None)
        assert (n > 0, n < -1) == (found, False), (regex, text)


def test_java_finds_what_python_finds(tmp_path: Path) -> None:
    """With Unicode classes and cases, as `ENGINES` says."""
    assert "Java with UNICODE_CHARACTER_CLASS, and UNICODE_CASE" in ENGINES
    if not (shutil.which("javac") and shutil.which("java")):  # a Java without a compiler takes no source
        pytest.skip("Java is not installed")
    (tmp_path / "Rules.java").write_text(JAVA, encoding="utf-8")
    tried = list(searches())
    lines = [f"{regex.encode().hex()} {flags} {text.encode().hex()}" for regex, flags, text, _ in tried]
    done = subprocess.run(
        ["java", str(tmp_path / "Rules.java")], input="\n".join(lines), text=True, capture_output=True, check=True
    )
    found = [line == "true" for line in done.stdout.split()]
    assert [one for one, java in zip(tried, found, strict=True) if one[3] != java] == []
