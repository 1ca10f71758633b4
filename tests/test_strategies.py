"""strategies.py: the messages are the paper's, and to erase changes the system turn and nothing else."""

import copy
import hashlib

import pytest
from conftest import talk

from orcalab import strategies
from orcalab.strategies import CAUTIOUS, ORCA1, STRATEGIES


def test_orca1_has_sixteen_messages_word_for_word():
    assert list(ORCA1) == list(range(1, 17)) and ORCA1[1] == "" and len(set(ORCA1.values())) == 16
    text = "\x1f".join(ORCA1.values())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "27919bcc0f96f3df"
    assert hashlib.sha256(CAUTIOUS.encode()).hexdigest()[:16] == "8c5fa8319707699a"
    assert {i for ids in strategies.ORCA1_IDS.values() for i in ids} <= set(ORCA1)


def test_every_explaining_strategy_asks_for_the_final_answer_line():
    assert len(STRATEGIES) == 7
    assert {n for n, text in STRATEGIES.items() if strategies.FINAL not in text} == {"direct-answer"}


def test_message_finds_every_name():
    assert strategies.message("empty") == "" and strategies.message("orca1-16") == ORCA1[16]
    assert strategies.message("step-by-step") == STRATEGIES["step-by-step"]
    with pytest.raises(ValueError, match="no strategy named 'step-by-stp'; did you mean 'step-by-step'"):
        strategies.message("step-by-stp")


@pytest.mark.parametrize("system", [None, "", "Work in steps."])
def test_erase_changes_only_the_system_turn(system):
    row = {"messages": talk(("user", "2+2"), ("assistant", "4"), ("user", "3+3"), ("assistant", "6"), system=system), "id": "a", "task": "t"}
    was = copy.deepcopy(row)
    new = strategies.erase(row)
    assert row == was  # the original is not touched
    assert new["messages"][0] == {"role": "system", "content": CAUTIOUS}
    assert new["messages"][1:] == [m for m in was["messages"] if m["role"] != "system"]
    assert new["original_system"] == (system or "")
    assert {k: v for k, v in new.items() if k not in ("messages", "original_system")} == {"id": "a", "task": "t"}


def test_set_system_none_leaves_the_turn_out():
    row = {"messages": talk(("user", "2+2"), system="x")}
    assert strategies.set_system(row, None)["messages"] == talk(("user", "2+2"))
    assert strategies.set_system(row, "")["messages"] == talk(("user", "2+2"), system="")
