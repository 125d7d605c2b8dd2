"""The generated data of the studies in `studies/`: what is asked, and what is right.

    python -m tests.benchmarks.gains_data

writes studies/data/*.jsonl again; a test holds that the files are what this gives.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FOLDER = Path(__file__).parents[2] / "studies" / "data"


def _words(text: str) -> list[str]:
    return re.split(r",\s+", text.strip())


_FIRST_NAMES = _words(
    """
    Maria, James, Aiko, Omar, Lena, Pedro, Ingrid, Samuel, Priya, Tomas, Chloe, Hassan, Nina, Victor, Zoe,
    Bruno, Elif, Marcus, Yara, Felix, Greta, Ivan, Joana, Karim, Lucia, Mateo, Noor, Oskar, Petra, Rafael,
    Sofia, Theo, Uma, Walter, Xenia, Yusuf, Anna, Boris, Clara, Diego
    """
)
_LAST_NAMES = _words(
    """
    Lopez, Carter, Tanaka, Haddad, Fischer, Alves, Berg, Okoye, Sharma, Novak, Martin, Aziz, Petrov, Lang,
    Rossi, Costa, Demir, Hughes, Silva, Brandt, Weber, Sokolov, Ramos, Nasser, Moretti, Garcia, Rahman, Lind,
    Kovacs, Mendes
    """
)
_CITIES = _words(
    """
    Porto, Chicago, Osaka, Cairo, Berlin, Lisbon, Oslo, Lagos, Mumbai, Prague, Paris, Dubai, Sofia, Boston,
    Rome, Madrid, Ankara, Leeds, Lima, Vienna, Zurich, Warsaw, Denver, Dublin, Athens, Toronto, Geneva, Kyoto,
    Milan, Seville
    """
)
_JOBS = _words(
    """
    nurse, teacher, engineer, baker, pilot, lawyer, gardener, chef, dentist, plumber, painter, farmer,
    librarian, electrician, carpenter, journalist, musician, architect, accountant, photographer
    """
)
_INTRODUCTIONS = (
    "{name}, {age}, is a {job} from {city}.",
    "{name} lives in {city} and works as a {job}. The last birthday was number {age}.",
    "At {age}, {name} still works as a {job} in {city}.",
    "Meet {name}, a {age}-year-old {job} who moved to {city}.",
    "The {job} {name} ({age}) has lived in {city} for years.",
    "In {city} we spoke to {name}, who is {age} and a {job}.",
)

_TOPICS = _words(
    """
    rainbows, volcanoes, tides, earthquakes, vaccines, batteries, magnets, glaciers, hurricanes, coral reefs,
    black holes, comets, fossils, muscles, lungs, dreams, bridges, elevators, refrigerators, microwave ovens,
    airplanes, submarines, rockets, satellites, telescopes, microscopes, cameras, radios, telephones, printers,
    computers, search engines, passwords, credit cards, banks, taxes, stock markets, elections, courts, juries,
    constitutions, museums, libraries, schools, hospitals, farms, beehives, ant colonies, bird migrations, whale
    songs, spider webs, seeds, forests, deserts, rivers, lakes, mountains, islands, caves, beaches, clouds,
    seasons, planets, stars, galaxies, sound waves, atoms, molecules, acids, soaps, clocks, calendars, maps,
    compasses, languages, alphabets, poems, novels, songs, pianos, violins, drums, films, photographs, bicycles,
    trains, ships, cars, traffic lights, roads, tunnels, dams, windmills, solar panels, nuclear reactors,
    recycling plants, compost heaps, greenhouses, lighthouses, fountains
    """
)
_QUESTIONS = (
    "Explain how {topic} work to a child.",
    "What should everyone know about {topic}?",
    "Write a short introduction to {topic}.",
    "Why do {topic} matter?",
    "What do people often get wrong about {topic}?",
    "Give three facts about {topic}.",
    "Where do we find {topic}, and why there?",
    "How have {topic} changed over time?",
    "Describe {topic} in plain words.",
)

_CALLS: tuple[tuple[str, Mapping[str, str], tuple[str, ...]], ...] = (
    (
        "get_weather",
        {"city": "city"},
        ("What is the weather like in {city}?", "Do I need an umbrella in {city} today?", "How warm is it in {city}?"),
    ),
    (
        "set_alarm",
        {"time": "time"},
        ("Wake me up at {time}.", "Set an alarm for {time}.", "I have to get up at {time}."),
    ),
    (
        "send_message",
        {"to": "person", "text": "text"},
        ('Tell {to} "{text}".', 'Send {to} a message that says "{text}".', 'Write "{text}" to {to}.'),
    ),
    (
        "book_table",
        {"city": "city", "people": "count"},
        ("Book a table for {people} in {city}.", "We are {people} and want to eat out in {city}."),
    ),
)
_TEXTS = (
    "I am late",
    "See you tomorrow",
    "Call me back",
    "The meeting moved to Friday",
    "Dinner is ready",
    "Happy birthday",
    "I found your keys",
    "Please bring milk",
)


def records(draw: random.Random) -> Iterator[Row]:
    """Sentences about people, and the JSON object that says the same."""
    while True:
        record = {
            "name": f"{draw.choice(_FIRST_NAMES)} {draw.choice(_LAST_NAMES)}",
            "age": draw.randint(19, 70),
            "job": draw.choice(_JOBS),
            "city": draw.choice(_CITIES),
        }
        yield {"text": draw.choice(_INTRODUCTIONS).format(**record), "record": json.dumps(record)}


def questions(draw: random.Random) -> Iterator[Row]:
    """Questions that ask for a short explanation; there is no one right answer."""
    pairs = list(product(_TOPICS, _QUESTIONS))
    draw.shuffle(pairs)
    return ({"question": question.format(topic=topic)} for topic, question in pairs)


def tool_calls(draw: random.Random) -> Iterator[Row]:
    """Requests, and the one call that answers each."""
    values: Mapping[str, Callable[[], Any]] = {
        "city": lambda: draw.choice(_CITIES),
        "time": lambda: f"{draw.randint(5, 22):02d}:{draw.choice((0, 10, 15, 20, 30, 40, 45, 50)):02d}",
        "person": lambda: draw.choice(_FIRST_NAMES),
        "text": lambda: draw.choice(_TEXTS),
        "count": lambda: draw.randint(2, 12),
    }
    while True:
        name, parameters, requests = draw.choice(_CALLS)
        arguments = {parameter: values[kind]() for parameter, kind in parameters.items()}
        yield {
            "request": draw.choice(requests).format(**arguments),
            "call": json.dumps({"name": name, "arguments": arguments}),
        }


ROWS = 900
DATA: Mapping[str, Callable[[random.Random], Iterator[Row]]] = {
    "records": records,
    "questions": questions,
    "tool_calls": tool_calls,
}


def lines(name: str) -> str:
    """Return a file's text: rows without repetition, in an order of chance that never changes."""
    found: dict[str, None] = {}
    for row in DATA[name](random.Random(f"llmsearch-optuna {name}")):
        found.setdefault(json.dumps(row))
        if len(found) == ROWS:
            break
    return "".join(f"{line}\n" for line in found)


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for name in DATA:
        (FOLDER / f"{name}.jsonl").write_text(lines(name), encoding="utf-8")


if __name__ == "__main__":
    main()
