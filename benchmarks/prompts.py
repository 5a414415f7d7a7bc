"""What the benchmarks ask. Written for them; short, of many kinds, and no two with a common beginning."""

from __future__ import annotations

import random

QUESTIONS: tuple[str, ...] = (
    "What is the capital of Portugal, and what is it known for?",
    "Write a haiku about rain on a tin roof.",
    "Explain to a child why the sky is blue.",
    "How do I reverse a list in Python?",
    "Give me three names for a grey cat.",
    "Translate 'good morning, my friend' into French.",
    "Summarise the story of Romeo and Juliet in two sentences.",
    "Is 91 a prime number? Say why.",
    "List the planets from the sun outwards.",
    "My train leaves at 14:35 and takes 2 hours and 50 minutes. When do I arrive?",
    "Why do cats purr?",
    "Describe the taste of a lemon without using the word sour.",
    "What is the difference between a virus and a bacterium?",
    "Write the first line of a detective novel.",
    "How many legs do three spiders and two dogs have together?",
    "Recommend a simple dinner with eggs, rice and spinach.",
    "Who painted the ceiling of the Sistine Chapel?",
    "Turn this into a polite request: close the door.",
    "What does HTTP status 404 mean?",
    "Continue the sequence: 2, 4, 8, 16,",
    "Tell me a fact about octopuses.",
    "Write a short thank-you note to a neighbour who watered my plants.",
    "What causes the tides?",
    "Convert 25 degrees Celsius to Fahrenheit.",
    "Explain recursion in one paragraph.",
    "Which is heavier, a kilogram of feathers or a kilogram of iron?",
    "Name two advantages of riding a bicycle to work.",
    "Was bedeutet das Wort Feierabend?",
    "Write a SQL query that counts the orders of each customer.",
    "How should I start learning the guitar?",
    "What is photosynthesis?",
    "Give a one-sentence definition of inflation.",
    "Rewrite in the past tense: she runs to the shop and buys bread.",
    "Suggest a title for an essay about lighthouses.",
    "When did people first land on the moon?",
    "What should I pack for a weekend at the sea?",
    "Compose a riddle whose answer is a shadow.",
    "¿Cuántos continentes hay en el mundo?",
    "Explain what a hash table is good for.",
    "How do bees make honey?",
)

PASSAGES: tuple[str, ...] = (
    "The harbour was quiet that morning. Two boats lay against the wall with their sails down, and a man in a blue "
    "jacket was mending a net in the sun. When the bell rang at nine he put down his needle, counted the holes that "
    "were left, and went to buy bread.",
    "A queue at a bakery and a queue in a computer obey the same arithmetic. If customers arrive faster than they "
    "can be served, the line grows without end; if they arrive a little slower, it is short most of the time and, "
    "now and then, surprisingly long.",
    "def moving_average(values, window):\n    total = sum(values[:window])\n    result = [total / window]\n    for "
    "old, new in zip(values, values[window:]):\n        total += new - old\n        result.append(total / window)\n"
    "    return result\n",
    "To make the soup, cut two onions and a carrot into small pieces and fry them slowly in butter. Add a litre of "
    "water, 250 grams of red lentils and a spoon of salt. After twenty minutes it is ready; a little lemon juice at "
    "the end makes it brighter.",
    "In 1854 a doctor named John Snow marked the deaths of an outbreak of cholera on a map of London. They lay close "
    "around one water pump in Broad Street. He had its handle taken off, and the map became one of the first "
    "arguments ever made with data.",
    "Dear Ms Okafor, thank you for your letter of 12 March. We have looked into the matter and found that your "
    "parcel was sent to the old address. A new one left our warehouse today and should reach you by Friday. We are "
    "sorry for the trouble this caused you.",
    "Stars look fixed, but they are not. The light of the nearest ones needs years to reach us, that of the farthest "
    "visible ones thousands, and in that time every one of them has moved. The sky is an old photograph, and each "
    "part of it was taken at another moment.",
    "A good index is a promise. It says that whatever the book knows about a word can be found in ten seconds, and it "
    "keeps that promise only if somebody has read every page with a stranger's questions in mind. No machine has yet "
    "been found that minds the stranger.",
    "import csv\n\n\ndef totals(path):\n    by_month = {}\n    with open(path) as file:\n        for row in "
    "csv.DictReader(file):\n            month = row['date'][:7]\n            by_month[month] = by_month.get(month, 0) "
    "+ float(row['amount'])\n    return by_month\n",
    "Salt lowers the temperature at which water freezes. A handful on an icy step melts what lies around each grain; "
    "the brine runs off and takes more ice with it. Below about minus eighteen degrees it no longer helps, and sand is "
    "the better choice.",
    "Le train de Lyon avait deux heures de retard. Sur le quai, une femme lisait un journal de la veille, un enfant "
    "comptait les pigeons et le chef de gare expliquait pour la dixième fois que la neige n'avait pas d'horaire.",
    "Der alte Leuchtturm steht seit 1871 auf der Klippe. Früher brannte oben ein Feuer aus Öl, heute dreht sich dort "
    "eine kleine Lampe, die man von fern kaum sieht. Trotzdem schauen die Fischer am Abend noch immer hinauf.",
    "The committee met on Tuesday at 10:30. Present were seven of nine members. It was agreed (1) to repair the roof "
    "before winter, at a cost of no more than 4,200 euros, (2) to ask two firms for offers, and (3) to close the "
    "library for one week in October.",
    "Water boils at a lower temperature on a mountain, because there is less air above to press on it. At 3,000 metres "
    "it boils at about 90 degrees, and an egg takes noticeably longer. Cooks there use a closed pot, in which the "
    "steam makes up for the missing air.",
    "She had kept every ticket: the circus, the ferry, the first concert in the rain. They lay in a biscuit tin in the "
    "order of the years. When her grandson asked which had been the best, she turned the tin over, shook it, and told "
    "him to pick one with his eyes closed.",
    "The rules are simple: each player takes seven cards, and the youngest begins. Whoever cannot follow suit draws "
    "one card. The round ends when somebody has none left, and the points of the others' cards are counted against "
    "them. Four rounds make a game.",
)

_NOUNS = """
river lamp window bread garden stone letter bridge winter candle market forest violin harbour pepper mountain
teacher blanket engine pocket island mirror orchard paper kettle meadow signal ladder copper thunder basket
journey planet velvet corner feather museum saddle tunnel whistle anchor biscuit compass diary evening fountain
"""
_WORDS = _NOUNS.split()


def distinct(count: int, seed: int) -> list[str]:
    """``count`` user turns of about 40 tokens with no common beginning; the same for the same seed.

    Distinct, because an engine with a prefix cache would read equal ones once.
    """
    chance = random.Random(seed)
    return [
        f"{' '.join(chance.choices(_WORDS, k=24)).capitalize()}. Make a story of these words." for _ in range(count)
    ]


def words(count: int, seed: int) -> str:
    """A text of ``count`` words, about 1.2 tokens each."""
    return " ".join(random.Random(seed).choices(_WORDS, k=count))
