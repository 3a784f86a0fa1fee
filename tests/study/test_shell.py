"""Shell text → words: as a shell would, with what only the user's shell knows marked."""

from __future__ import annotations

import shlex
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import UserError
from autotune.study.script import Script, script_of
from autotune.study.shell import Word, expand, tokens, unknown

# Every character that a word may have; the two marks are taken out of any text.
_TEXT = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00\r\ue000\ue001"),
    min_size=1,
)


def words(text: str) -> list[str]:
    return [w for t in tokens(text) if isinstance(t, Word) for w in expand(t, {}, [])]


@given(st.lists(_TEXT, min_size=1, max_size=6))
def test_quoted_words_come_back(given_words: list[str]) -> None:
    # a `$` or `!` at the beginning of a line is a prompt, and so is no word of a command
    assert words(f": {shlex.join(given_words)}")[1:] == given_words


@given(st.text(max_size=200))
def test_any_text_is_words_or_one_line(text: str) -> None:
    with suppress(UserError):
        assert isinstance(script_of(text), Script)


@pytest.mark.parametrize(
    "text",
    [
        r"""X=1; show 'b c' "d $X e" f\ g 'it'\''s' "q\"q" $'t\tt' ''""",
        'X=1; Y="two words"; show $X $Y "$Y" ${Z:-dflt} ${X:+set} ${Z-a b} \'$X\'',
        "A=(one 'two three'); A+=(four); show \"${A[@]}\" ${A[@]} $A",
        "show a#b # c\nshow '#d' \\\n e",
        "export X=1 && show $X || true; show x",
        'show "$@" ${@:-} end',
        "X=a; X+=b; show $X ${X} ~ \"~\" '{a,b}'",
        "{ show 1; }; (show 2); if true; then :; fi; show 3",
        "cat <<EOF\nshow no\nEOF\nshow yes > /dev/null 2>&1 < /dev/null",
        'show $"text" "a\\\nb" a$ "$"',
    ],
)
def test_the_words_are_those_of_bash(text: str) -> None:
    show = 'show() { printf "%s\\1" "$@" >&3; }'
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&1 1>/dev/null\n{show}\n{text}"],  # noqa: S607
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    ours = [w for c in script_of(text).commands if c.words[0] == "show" for w in c.words[1:]]
    assert ours == done.stdout.split("\1")[:-1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("serve $MODEL", "$MODEL"),
        ('serve "${DIR}/m"', "${DIR}"),
        ("serve $(find . -name m)", "$(find . -name m)"),
        ("serve `cat model`", "`cat model`"),
        ("serve org/<model>", "<model>"),
        ("serve <your model>", "<your model>"),
        ("serve ${M%-*}", "${M%-*}"),
        ("if x; then M=a; fi; serve $M", "$M"),
        ("for M in a b; do :; done; serve $M", "$M"),
        ("[ -n x ] && M=a; serve $M", "$M"),
    ],
)
def test_what_only_the_users_shell_knows_is_marked(text: str, what: str) -> None:
    last = script_of(text).commands[-1].words
    assert last[0] == "serve"
    assert unknown(last[1]) == what


def test_what_is_single_quoted_is_itself() -> None:
    assert unknown(words("'$X `y` $(z)'")[0]) is None


def test_a_default_is_taken_and_said_but_no_secret() -> None:
    script = script_of("serve ${TP:-4} ${HF_TOKEN:-hf_secret} ${TP:-4}")
    assert script.commands[0].words == ("serve", "4", "hf_secret", "4")
    assert script.said == [
        "${TP} is not set in the text; its default '4' is taken",
        "${HF_TOKEN} is not set in the text; its default *** is taken",
    ]


@pytest.mark.parametrize("end", ["\\\n", "\\\r\n", "\\  \n", "\\\t# which\n"])
def test_a_line_goes_on(end: str) -> None:
    assert words(f"a {end}  b") == ["a", "b"]


def test_what_surrounds_a_command_is_known() -> None:
    text = "a\nif b; then c; else d; fi\nwhile e; do f; done\ng() { h; }\ncase x in y) i;; esac\nj"
    assert [(c.words[0], c.inside) for c in script_of(text).commands] == [
        ("a", None),
        ("b", "an `if`"),
        ("c", "an `if`"),
        ("d", "an `if`"),
        ("e", "a loop"),
        ("f", "a loop"),
        ("h", "a function"),
        ("i", "a `case`"),
        ("j", None),
    ]


@pytest.mark.parametrize("text", ["a 'b", 'a "b', "a $(b", "a ${b", "X=(a", "a `b", "a $'b"])
def test_what_does_not_end_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="cannot be split into words: no closing"):
        script_of(text)
