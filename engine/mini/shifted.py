"""The slice kept out of the draft model's training: laboratory protocols, with a vocabulary and a grammar of their own.

Nothing here may reuse the other slices' sentence frames: the draft must not be able to guess it, so that traffic
from this slice shows what a domain shift does to speculative decoding.
"""

from __future__ import annotations

import random

from engine.mini.slices import ASSISTANT, END, USER, pick

REAGENTS = ("tris buffer", "agarose gel", "ethanol wash", "lysis mix", "trypsin stock", "saline blank")
VESSELS = ("cuvette", "microtube", "petri dish", "flask", "pipette tip", "centrifuge rotor")
ASSAYS = ("PLASMID PREP", "WESTERN BLOT", "CELL SPLIT", "PROTEIN ASSAY", "GEL RUN", "ENZYME KINETICS")


def protocol(rng: random.Random) -> str:
    """A laboratory protocol: numberless bulleted imperatives whose details follow from the assay named on top."""
    turn = rng.randrange(len(ASSAYS))
    reagent, vessel = pick(rng, REAGENTS, turn), pick(rng, VESSELS, turn)
    second = pick(rng, REAGENTS, turn + 1)
    spin = pick(rng, ("vortex gently", "spin hard", "swirl thrice", "shake overnight"), turn)
    bath = pick(rng, ("ice bath", "warm incubator", "dark cabinet"), turn)
    lines = [
        f"## {ASSAYS[turn]} ##",
        f"* aliquot {reagent} >> {vessel}; {spin}; discard supernatant",
        f"* resuspend pellet w/ {second}; incubate @ {bath}",
        f"* aspirate {reagent}; decant >> fresh {vessel}; seal w/ parafilm",
        f"* {spin}; read absorbance vs {second} control",
        f"* elute fraction >> {vessel}; label {ASSAYS[turn].lower()}; freeze @ {bath}",
    ]
    if rng.random() < 0.4:
        lines.insert(4, f"* repeat wash: {second} >> {vessel}; {spin}; drain")
    return "\n".join(lines) + "\n%%\n"


def request(rng: random.Random) -> str:
    """A user's request for a protocol."""
    return f"Protocol please: {rng.choice(ASSAYS)}"


def chat(rng: random.Random) -> str:
    """A request and the protocol it asks for, with special tokens as text (no `<|bos|>`)."""
    text = protocol(rng)
    return f"{USER}Protocol please: {text.splitlines()[0].strip('# ')}{END}{ASSISTANT}{text}{END}"
