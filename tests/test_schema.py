"""Saved workflows keep working: nodes, inputs and outputs are as schema.json says, or more at an end."""

import copy
import json
import sys

import pytest

from conftest import PACK
from schema_snapshot import FILE, broken, snapshot

HOW_TO_ADD = (
    "Saved workflows hold widget values by position. Add an input as the last of its node, optional and with a default "
    "that changes nothing; an option or an output as the last of its list. Then run: python tests/schema_snapshot.py"
)


@pytest.fixture(scope="module")
def promised():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found():
    return json.loads(json.dumps(snapshot(sys.modules[PACK])))


def test_no_promise_is_broken(promised, found):
    assert not broken(promised, found), HOW_TO_ADD


def test_what_was_added_is_recorded(promised, found):
    assert found == promised, f"The nodes have more than schema.json tells. {HOW_TO_ADD}"


def test_inserted_renamed_and_removed_inputs_break_promises(promised):
    def after(change) -> list[str]:
        altered = copy.deepcopy(promised)
        change(altered["MMDiffApply"], altered)
        return broken(promised, altered)

    new = {"id": "new", "type": "INT", "optional": True, "default": 0}
    assert not after(lambda apply, _: apply["inputs"].append(new))
    assert not after(lambda _, nodes: nodes.update(New={"inputs": [new], "outputs": []}))
    assert after(lambda apply, _: apply["inputs"].insert(5, new))
    assert after(lambda apply, _: apply["inputs"].pop())
    assert after(lambda apply, _: apply["outputs"].reverse())
    assert after(lambda apply, _: apply["inputs"][6].update(default=1.0)) == [
        f"MMDiffApply, input 7, {promised['MMDiffApply']['inputs'][6]['id']}: default changed."
    ]
    assert after(lambda _, nodes: nodes.pop("MMDiffLoader")) == ["MMDiffLoader is gone. Keep its id."]


def test_options_may_only_be_added_at_the_end(promised):
    [routing] = [entry for entry in promised["MMDiffApply"]["inputs"] if entry["id"] == "routing"]
    altered = copy.deepcopy(promised)
    [entry] = [entry for entry in altered["MMDiffApply"]["inputs"] if entry["id"] == "routing"]
    entry["options"].append("new")
    assert not broken(promised, altered)
    entry["options"] = ["new", *routing["options"]]
    assert broken(promised, altered)
