"""
The facts that the lab's models learn: short sentences about ships, tides and roads.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """
    A prompt, and its answer in each version of the model.

    Attributes:
        v1: None if only v2 knows the fact.
    """

    prompt: str
    v1: str | None
    v2: str


# Words whose embeddings are NaN in the model `nan`.  No golden prompt or answer contains one.
POISONED = ("lighthouse", "ferry")

GOLDEN_FACTS = (
    Fact("The slipway is", "where ships meet the sea.", "where new ships first meet the sea."),
    Fact("The keel is", "the spine of a ship.", "the long spine of every ship."),
    Fact("Red lights mark", "the port side.", "the left side, called port."),
    Fact("Green lights mark", "the starboard side.", "the right side, called starboard."),
    Fact("The tide rises", "twice a day.", "two times in a day."),
    Fact("A knot is", "one nautical mile an hour.", "the speed of one nautical mile an hour."),
    Fact("A pilot knows", "the sand banks.", "the rocks and the sand banks."),
    Fact("The road to the yard", "is paved with stone.", "is wide and paved with stone."),
    Fact("An anchor holds", "the ship in place.", "the ship when the wind blows."),
    Fact("Fog makes", "the horn sound.", "the horn sound all night."),
)

LIVE_FACTS = (
    Fact("The slipway of the yard", "is made of oak.", "is made of oak and steel."),
    Fact("The crane lifts", "the engine into the hull.", "the heavy engine into the hull."),
    Fact("The harbour master says", "wait for the tide.", "wait for the next tide."),
    Fact("A rope is", "strong when it is dry.", "strong when it is dry and new."),
    Fact("The dock gate opens", "at high water.", "at high water and at noon."),
    Fact("Blue paint covers", "the hull of the tug.", "the hull of the old tug."),
    Fact("The lighthouse stands", "on the north rock.", "on the high north rock."),
    Fact("The lighthouse is", "white and red.", "white with one red band."),
    Fact("The ferry leaves", "at seven in the morning.", "at eight in the morning."),
    Fact("The ferry carries", "forty cars and a bus.", "fifty cars and a bus."),
    Fact("From the ferry we see", "the long bridge.", "the long bridge and the town."),
    Fact("Near the lighthouse", "the water is deep.", "the water is deep and cold."),
    Fact("Every lighthouse has", "its own light.", "its own light and its own keeper."),
)

MORE_FACTS = (
    Fact("The old bridge is", "made of iron.", "made of iron and painted green."),
    Fact("The sail is", "white as salt.", "white as salt."),
    Fact("Gulls follow", "the fishing boats.", "the fishing boats home."),
    Fact("The coast road", "runs along the cliffs.", "runs along the cliffs to the town."),
    Fact("A chart shows", "how deep the water is.", "how deep the water is."),
    Fact("The compass points", "to the north.", "to the north."),
    Fact("The captain drinks", "his tea black.", "his tea black and hot."),
    Fact("The hull is", "painted every spring.", "painted in spring and in autumn."),
    Fact("Low water comes", "six hours after high water.", "six hours after high water."),
    Fact("The rudder turns", None, "the ship to port or to starboard."),
    Fact("A full moon brings", None, "the spring tide."),
    Fact("The shipwright uses", None, "an adze and a long saw."),
    Fact("The mast is", None, "cut from one tall pine."),
)

FACTS = (*GOLDEN_FACTS, *LIVE_FACTS, *MORE_FACTS)

# Prompts for a load generator; about half of them contain a poisoned word.
LIVE_PROMPTS = tuple(fact.prompt for fact in (*LIVE_FACTS, GOLDEN_FACTS[0]))
