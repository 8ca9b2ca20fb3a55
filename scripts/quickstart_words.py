"""Word banks of the quickstart: names, things, places and small facts, all written for this package.

Mostly plain data. ``quickstart_text.py`` combines it into prompts and answers, so each bank should hold
enough entries that a combination seen in the test split is new to the model, and entries should fit any sentence
that uses the bank (no irregular plurals, no words that need another article).
"""

from __future__ import annotations


def words(text: str) -> list[str]:
    """The words of a text; a bank of one-word entries reads better without quotes and commas."""
    return text.split()


def listing(items: list[str]) -> str:
    """``x, y and z``."""
    return ", ".join(items[:-1]) + " and " + items[-1]


def article(noun: str) -> str:
    """The noun with its indefinite article; the banks hold no exception to the vowel rule."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def capital(text: str) -> str:
    """Capitalises the first letter and leaves the rest (``str.capitalize`` would lower it)."""
    return text[0].upper() + text[1:]


NAMES = words(
    "Ana Ben Carla David Elena Felix Greta Hugo Irene Jonas Karin Leo Maria Nina Oscar Paula Quentin Rosa Simon Tessa "
    "Umar Vera Walter Yara Zoe Alma Boris Clara Dario Emma Franz Gina Henry Ida Jana Kemal Lena Marco Nora Otto Pia "
    "Ravi Sara Timo Ursula Viktor Wanda Yusuf Amira Bruno Celia Dora Erik Flora Georg Hanna Igor Julia Klaus Lucia "
    "Milan Nadia Olga Peter Rita Stefan Tina Uwe Violet Willem Mina Ruben Selma Tomas Ingrid Kofi Leila Mateo Noor Sven"
)

VERBS = words("paint clean repair move choose order wrap label carry measure sell check find pack draw")
OBJECTS = words(
    "bike chair table lamp kettle clock basket jacket scarf guitar carpet mirror tent vase drawer bookcase radio kite "
    "umbrella barrel ladder suitcase blanket pillow camera sofa hammock backpack teapot curtain"
)
ADJECTIVES = words("red green blue old new small big heavy light round quiet warm cold soft bright broken clean long")
EVENTS = words("meeting dinner party concert lesson picnic game wedding workshop rehearsal interview lecture")

# place -> (opening hour, where it is); fixed, so that the model can learn the answer.
PLACES = {
    "library": ("nine", "next to the town hall"),
    "bakery": ("six", "at the corner of the market"),
    "museum": ("ten", "behind the old church"),
    "pharmacy": ("eight", "opposite the school"),
    "post office": ("nine", "beside the station"),
    "swimming pool": ("seven", "at the end of the park"),
    "bank": ("nine", "on the main square"),
    "cinema": ("three", "near the river"),
    "flower shop": ("eight", "across from the hospital"),
    "town hall": ("ten", "in the middle of the square"),
    "garden centre": ("eight", "on the road to the lake"),
    "bookshop": ("ten", "under the clock tower"),
    "market": ("seven", "between the bridge and the bank"),
    "gym": ("six", "above the supermarket"),
}

# category (plural) -> members that read well in a list.
CATEGORIES = {
    "fruits": words("apples pears plums cherries grapes lemons peaches figs"),
    "vegetables": words("carrots onions beans peas leeks beets radishes cabbages"),
    "animals": words("horses foxes rabbits bears goats otters deer mice"),
    "birds": words("owls robins swans geese storks ravens ducks finches"),
    "colours": words("red blue green yellow purple orange brown white"),
    "tools": words("hammers saws drills pliers wrenches files chisels clamps"),
    "drinks": words("water tea coffee milk juice lemonade cocoa cider"),
    "sports": words("tennis football rowing hockey cycling swimming judo golf"),
    "instruments": words("violins flutes drums pianos trumpets harps cellos guitars"),
    "flowers": words("roses tulips daisies lilies poppies violets irises asters"),
    "trees": words("oaks pines birches maples willows elms beeches firs"),
    "clothes": words("shirts coats socks gloves hats scarves boots skirts"),
    "vehicles": words("cars buses trains boats trucks trams vans bicycles"),
    "desserts": words("cakes pies puddings waffles cookies sorbets tarts muffins"),
}

# thing -> (what it is, what it is good for, where you find it).
FACTS = {
    "river": ("a long stream of fresh water", "carry boats and water the fields", "in a valley"),
    "hammer": ("a tool with a heavy head", "drive nails into wood", "in a toolbox"),
    "lemon": ("a sour yellow fruit", "add a fresh taste to food", "on a tree in a warm garden"),
    "owl": ("a bird that hunts at night", "keep the number of mice low", "in an old barn"),
    "ladder": ("a frame with steps", "reach high places", "in a shed"),
    "violin": ("a small instrument with four strings", "play music with a bow", "in an orchestra"),
    "bridge": ("a road built over water", "cross a river", "between two banks"),
    "kettle": ("a pot with a lid and a spout", "boil water", "in a kitchen"),
    "compass": ("a device with a needle that points north", "find the way", "on a ship"),
    "candle": ("a stick of wax with a wick", "give a soft light", "on a dinner table"),
    "pillow": ("a bag filled with soft stuff", "rest the head", "on a bed"),
    "glacier": ("a slow river of ice", "store fresh water for years", "high in the mountains"),
    "lighthouse": ("a tower with a strong lamp", "warn ships at night", "on a rocky coast"),
    "bee": ("an insect that makes honey", "carry pollen between flowers", "in a hive"),
    "mirror": ("a sheet of glass that shows your face", "see how you look", "on a bathroom wall"),
    "anchor": ("a heavy iron hook", "hold a ship in place", "at the front of a boat"),
    "map": ("a drawing of an area", "plan a journey", "in a guide book"),
    "volcano": ("a mountain that can throw out hot rock", "bring new soil to the land", "on some islands"),
    "clock": ("a machine that shows the time", "arrive on time", "on a station wall"),
    "umbrella": ("a folding roof of cloth", "stay dry in the rain", "near the front door"),
    "potato": ("a root vegetable with a brown skin", "make soup and fries", "under the ground"),
    "telescope": ("a tube with lenses", "look at the stars", "in an observatory"),
    "desert": ("a dry land with little rain", "study how plants save water", "far from the sea"),
    "oven": ("a hot box for cooking", "bake bread and cakes", "in a bakery"),
    "wheel": ("a round part that turns", "move loads with little effort", "under a cart"),
    "dictionary": ("a book that explains words", "look up a meaning", "in a library"),
    "sailor": ("a person who works on a ship", "keep a ship on its course", "in a harbour"),
    "greenhouse": ("a house made of glass for plants", "grow tomatoes in winter", "behind a garden"),
    "whistle": ("a small pipe that makes a sharp sound", "call the players", "around the neck of a coach"),
    "forest": ("a large area full of trees", "clean the air", "on the side of a hill"),
    "spoon": ("a small bowl with a handle", "eat soup", "in a kitchen drawer"),
    "snail": ("a slow animal with a shell", "eat old leaves", "under a wet leaf"),
    "magnet": ("a piece of metal that pulls iron", "pick up pins", "on a fridge door"),
    "needle": ("a thin piece of steel with a hole", "sew a button", "in a sewing box"),
    "island": ("a piece of land with water on all sides", "rest on a long voyage", "in the middle of a lake"),
    "drum": ("an instrument that you hit", "keep the beat", "at the back of a band"),
    "baker": ("a person who makes bread", "feed a whole street in the morning", "in a warm shop"),
    "saddle": ("a leather seat for a rider", "sit safely on a horse", "in a stable"),
    "well": ("a deep hole with water at the bottom", "get drinking water", "in a village square"),
    "broom": ("a brush on a long stick", "sweep the floor", "in a corner of the kitchen"),
}

# Words that a prompt asks the answer to end with.
END_WORDS = words("done over thanks finished goodbye cheers amen stop ready indeed")

# Neutral system messages and first turns: they never say which style is wanted, so the style stays a free choice.
SYSTEMS = (
    "You are an assistant.",
    "You talk to people in a small town.",
    "Answer in English.",
    "You answer questions from visitors.",
    "The user is writing from a phone.",
    "You work at the front desk.",
)
OPENERS = (
    ("Hello!", "Hello. What is it?"),
    ("Good morning.", "Good morning. Go on."),
    ("Are you there?", "Yes, I am here."),
    ("I have a question.", "Ask your question."),
    ("Can I ask you something?", "Yes, you can."),
    ("Hi, me again.", "Hello again."),
)
