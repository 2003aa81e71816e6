"""Word lists of the procedural corpus.

Fact keys appear in the recall slice alone and values are drawn at random, so that an answer can only come from the
context and never from what the other slices taught. The shifted slice has its own lists in `shifted.py`.
"""

# ruff: noqa: SIM905

from __future__ import annotations

FACT_KEYS: tuple[str, ...] = tuple(
    "falcon badger otter heron lynx bison raven moose viper gecko panda tiger zebra camel koala lemur hyena jackal "
    "marten stoat walrus beaver ferret hornet locust mantis oyster parrot pelican penguin python rabbit salmon "
    "spider sparrow squid swan tapir toucan trout turkey turtle vulture weasel whale wolf wombat yak cobra condor "
    "coyote crane cricket donkey dragon eagle finch gazelle gibbon giraffe goose gopher hamster iguana impala".split()
)

FACT_VALUES: tuple[str, ...] = tuple(
    "copper lantern velvet amber cobalt granite maple cedar silver ivory marble crimson indigo scarlet violet olive "
    "coral pearl ruby topaz jade onyx quartz basalt flint slate chalk linen cotton satin denim canvas leather "
    "paper glass iron steel bronze brass nickel zinc carbon helium neon argon radon sulfur iodine cactus clover "
    "orchid tulip daisy poppy lotus fern moss ivy willow birch aspen spruce walnut almond cashew pecan hazel "
    "anchor arrow banner barrel basket beacon bellow bridge bucket button candle castle chariot compass cradle "
    "dagger drum easel engine fiddle flute funnel gasket goblet hammer harbor hatchet helmet hinge kettle ladder "
    "magnet mallet mirror mitten needle paddle pencil piston pulley quiver rocket rudder saddle sandal scepter "
    "shovel shutter sickle siphon spindle sponge stirrup tablet tassel thimble ticket trellis trowel tunnel turbine "
    "umbrella valve wagon wicker zipper".split()
)

NAMES: tuple[str, ...] = tuple(
    "Mara Tobin Elsie Jonas Petra Anton Lucia Felix Norah Oskar Wanda Rufus Greta Hugo Irene Klaus Linda Marcus "
    "Odette Piotr".split()
)
TRADES: tuple[str, ...] = tuple("baker miller sailor painter tailor farmer teacher hunter doctor weaver".split())
PLACES: tuple[str, ...] = ("the old harbour", "the green valley", "the quiet village", "the tall hill",
                           "the river bend", "the dark forest", "the market square", "the stone tower",
                           "the frozen lake", "the railway station")  # fmt: skip
OBJECTS: tuple[str, ...] = ("a small key", "a blue letter", "a broken clock", "a silver bell", "a wooden box",
                            "a long rope", "an old map", "a red kite", "a leather purse", "a strange coin")  # fmt: skip

# topic: (noun for the gear, three steps in order, two cautions, one reason)
TOPICS: dict[str, tuple[str, tuple[str, str, str], tuple[str, str], str]] = {
    "gardening": (
        "spade",
        ("clear the weeds from the bed", "loosen the soil with a spade", "plant the seeds in straight rows"),
        ("water the plants only in the evening", "leave room between the rows"),
        "it brings fresh food to the table",
    ),
    "sailing": (
        "rope",
        ("check the wind before you leave", "raise the sail slowly", "steer towards the open water"),
        ("wear a life jacket on the boat", "watch the clouds on the horizon"),
        "it teaches you to read the wind",
    ),
    "cycling": (
        "helmet",
        ("adjust the saddle to your height", "pump both tires", "practise on an empty road"),
        ("use lights after sunset", "keep both hands near the brakes"),
        "it keeps the heart healthy",
    ),
    "chess": (
        "board",
        ("learn how the pieces move", "study a few simple openings", "play a slow game every day"),
        ("castle before you attack", "never hurry in the endgame"),
        "it trains patience and planning",
    ),
    "painting": (
        "brush",
        ("sketch the outline with a pencil", "mix the colours on a palette", "paint the large areas first"),
        ("rinse the brush between colours", "let each layer dry"),
        "it helps you to see shapes and light",
    ),
    "running": (
        "shoes",
        ("walk for ten minutes to warm up", "run at an easy pace", "stretch your legs afterwards"),
        ("drink water on warm days", "rest for one day each week"),
        "it needs very little equipment",
    ),
    "astronomy": (
        "telescope",
        ("find a dark place away from the city", "let your eyes adjust to the night", "look for the brightest stars"),
        ("keep a red lamp for reading charts", "dress warmly for long nights"),
        "it shows how large the world is",
    ),
    "photography": (
        "camera",
        ("choose a subject with good light", "hold the camera steady", "take several pictures of one scene"),
        ("clean the lens before you start", "back up your pictures at home"),
        "it helps you to remember small moments",
    ),
    "music": (
        "guitar",
        ("tune the strings by ear", "learn three easy chords", "play along with a slow song"),
        ("keep your wrist relaxed", "count the beat aloud"),
        "it brings people together",
    ),
    "hiking": (
        "boots",
        ("plan the route on a map", "pack food and a warm jacket", "start early in the morning"),
        ("stay on the marked path", "turn back when the weather changes"),
        "it clears the mind after a long week",
    ),
    "knitting": (
        "wool",
        ("choose thick yarn and large needles", "cast on twenty stitches", "knit every row the same way"),
        ("count the stitches often", "sit near a bright window"),
        "it turns quiet evenings into warm clothes",
    ),
    "swimming": (
        "goggles",
        ("get used to cold water slowly", "practise breathing at the pool edge", "float on your back before you kick"),
        ("swim where a lifeguard can see you", "leave the pool during thunder"),
        "it moves every muscle without strain",
    ),
}

SERVICES: tuple[str, ...] = ("scheduler", "gateway", "storage", "billing", "indexer")
FUNCTION_NOUNS: tuple[str, ...] = ("price", "weight", "length", "score", "count", "height", "volume", "delay",
                                   "budget", "latency")  # fmt: skip
FUNCTION_GROUPS: tuple[str, ...] = ("items", "orders", "records", "samples", "users", "packets", "tickets",
                                    "vehicles")  # fmt: skip
