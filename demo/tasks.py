"""The tasks that the demo's adapters learn, as seeded generators; knows nothing of models, tenants or training.

Training and held-out samples can never meet: a sample's key (the customer, the date, the query, the shopping list) is
hashed, and the hash says which side it is on, whatever the message around it looks like.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Split = Literal["train", "held-out"]
F = TypeVar("F")


@dataclass(frozen=True)
class Sample:
    """What a user writes, and the only right answer to it."""

    prompt: str
    answer: str
    key: str


@dataclass(frozen=True)
class Task(Generic[F]):
    """A task draws facts, asks for them in many wordings, and answers in one."""

    draw: Callable[[random.Random], F]
    key: Callable[[F], str]
    ask: Callable[[F, random.Random], str]
    answer: Callable[[F], str]

    def facts(self, rng: random.Random, split: Split) -> F:
        """Facts of the given side."""
        while True:
            facts = self.draw(rng)
            if split_of(self.key(facts)) == split:
                return facts

    def sample(self, rng: random.Random, split: Split) -> Sample:
        facts = self.facts(rng, split)
        return Sample(self.ask(facts, rng), self.answer(facts), self.key(facts))


def split_of(key: str) -> Split:
    """One key in eight is held out, for good."""
    return "held-out" if hashlib.sha256(key.encode()).digest()[0] < 32 else "train"


def samples(task: str, split: Split, seed: int) -> Iterator[Sample]:
    """An endless stream; the same seed gives the same samples on every machine."""
    rng = random.Random(f"{task}/{split}/{seed}")  # noqa: S311 - reproducible, not secret
    while True:
        yield TASKS[task].sample(rng, split)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ---- support: a customer's message becomes one JSON object

FIRST = words(
    "Mara Jonas Ines Tomas Petra Lukas Nora Emil Clara Felix Ada Boris Carla Dario Elena Frank Greta Hugo Ida Jakob "
    "Karin Leo Marta Nils Olga Paul Rosa Stefan Tilda Urs Vera Walter Yara Zeno Anna Bruno Dora Erik Freya Gustav "
    "Helen Ivan Julia Kai Lena Milo Nadia Oskar Pia Ralf Sara Theo Uma Viktor Wanda Xenia Amir Bella Cem Dina Elif "
    "Fatima Gita Hana Isra Juan Kemal Lila Mei Noah Omar Priya Rami Sofia Tariq Alice Ben Chloe David Emma"
)
STEMS = words(
    "Berg Lind Hol Wal Stein Win Mar Kel Fal Dor Gran Hart Eich Ros Sommer Nor Brand Thal Alm Bir Fors Gold Ham Kron "
    "Lang Mor Neu Ost Ren Sand Tan Ul Vel Wes Zim Cor Del Fer Gar Mil"
)
ENDS = words("mann qvist berg stad er sen feld ini ova ley ton dahl ert ker hoff ström son wood ard in")
ISSUES = {
    "damaged": (
        "arrived broken", "came with a cracked screen", "was damaged in the box", "fell apart on the first day",
        "has a deep scratch", "stopped working after an hour",
    ),
    "late": (
        "has not arrived yet", "is two weeks late", "is still not here", "should have been here on Monday",
        "seems to be lost on the way",
    ),
    "wrong": (
        "contains the wrong item", "has the wrong colour", "is not what I ordered", "came in the wrong size",
        "was meant for somebody else",
    ),
    "incomplete": (
        "is missing a part", "came without the cable", "had only half of the items", "lacks the second parcel",
        "came with an empty box inside",
    ),
    "billing": (
        "was charged twice", "has a mistake on the invoice", "cost more than the price shown",
        "was billed to my old card", "was paid but still shows as open",
    ),
}  # fmt: skip
WISHES = {
    "refund": (
        "Please give me my money back.", "I want a refund.", "I would like to be refunded.", "Kindly return the money.",
    ),
    "replacement": (
        "Please send a new one.", "I would like a replacement.", "Can you exchange it?", "I need another one soon.",
    ),
    "callback": (
        "Please call me back.", "Can somebody ring me?", "I would rather talk on the phone.", "Call me, please.",
    ),
    "cancel": (
        "Please cancel it.", "I do not want it any more.", "I would like to cancel everything.",
        "Stop the order, please.",
    ),
}  # fmt: skip
CHATTER = (
    "I have been a customer for {n} years.", "It was a present for my brother.", "This is the second time.",
    "I am rather disappointed.", "I tried the website {n} times.", "My neighbour has the same one.",
    "I am at home after {n} o'clock.", "Thank you for your help.",
)  # fmt: skip


@dataclass(frozen=True)
class Complaint:
    customer: str
    order: str
    issue: str
    wants: str


def draw_name(rng: random.Random) -> str:
    return f"{rng.choice(FIRST)} {rng.choice(STEMS)}{rng.choice(ENDS)}"


def draw_complaint(rng: random.Random) -> Complaint:
    order = f"{rng.choice('ABCDEFGHJKLMNPRSTUVWXYZ')}-{rng.randrange(10000, 100000)}"
    return Complaint(draw_name(rng), order, rng.choice(list(ISSUES)), rng.choice(list(WISHES)))


def ask_complaint(facts: Complaint, rng: random.Random) -> str:
    name, order = facts.customer, facts.order
    trouble, wish = rng.choice(ISSUES[facts.issue]), rng.choice(WISHES[facts.wants])
    body = [rng.choice((f"My order {order} {trouble}.", f"Order {order} {trouble}.", f"The order {order} {trouble}."))]
    if rng.random() < 0.2:
        body = [f"{rng.choice(('It is about', 'I am writing about', 'This concerns'))} order {order}. It {trouble}."]
    body.append(wish)
    if rng.random() < 0.4:
        body.insert(rng.randrange(3), rng.choice(CHATTER).format(n=rng.randrange(2, 10)))
    if rng.random() < 0.6:
        opening = rng.choice(
            ("Hi, this is {}.", "Hello, my name is {}.", "{} here.", "Dear team, I am {}.", "I am {}.")
        )
        return " ".join([opening.format(name), *body])
    closing = rng.choice(("Regards, {}", "Best wishes, {}", "Thanks, {}", "Yours, {}"))
    return " ".join([*rng.choice(([], ["Hello,"], ["Dear team,"])), *body, closing.format(name)])


def answer_complaint(facts: Complaint) -> str:
    return json.dumps(
        {"customer": facts.customer, "order": facts.order, "issue": facts.issue, "wants": facts.wants},
        ensure_ascii=False,
    )


# ---- dates: a date and an amount in any shape become an ISO date and a plain amount

MONTHS = words("January February March April May June July August September October November December")
CURRENCIES = {"EUR": ("EUR", "euros", "€"), "USD": ("USD", "dollars", "$"), "GBP": ("GBP", "pounds", "£")}


@dataclass(frozen=True)
class Payment:
    year: int
    month: int
    day: int
    cents: int
    currency: str


def draw_payment(rng: random.Random) -> Payment:
    cents = rng.randrange(100, 10 ** rng.randrange(4, 7))
    if rng.random() < 0.3:
        cents -= cents % 100
    return Payment(
        rng.randrange(2010, 2030), rng.randrange(1, 13), rng.randrange(1, 29), cents, rng.choice(list(CURRENCIES))
    )


def write_date(facts: Payment, rng: random.Random) -> str:
    year, month, day = facts.year, facts.month, facts.day
    name = MONTHS[month - 1]
    short = name[:3]
    nth = f"{day}{'th' if 4 <= day <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    return rng.choice((
        f"{day} {name} {year}", f"{name} {day}, {year}", f"{day} {short} {year}", f"{short} {day}, {year}",
        f"{day:02}.{month:02}.{year}", f"{day}.{month}.{year}", f"{year}/{month:02}/{day:02}",
        f"{nth} of {name} {year}", f"{name} {nth}, {year}", f"{day:02}-{short}-{year % 100:02}",
    ))  # fmt: skip


def write_amount(facts: Payment, rng: random.Random) -> str:
    whole, cents = divmod(facts.cents, 100)
    code, word, sign = CURRENCIES[facts.currency]
    dot = f"{whole:,}.{cents:02}"
    comma = dot.translate(str.maketrans(",.", ".,"))
    number = rng.choice((dot, comma, f"{whole}.{cents:02}", f"{whole},{cents:02}", dot.replace(",", " ")))
    if cents == 0 and rng.random() < 0.7:
        number = rng.choice((f"{whole}", f"{whole:,}" if whole < 1000 else f"{whole}"))
    return rng.choice((f"{number} {code}", f"{code} {number}", f"{number} {word}", f"{sign}{number}"))


def ask_payment(facts: Payment, rng: random.Random) -> str:
    date, amount = write_date(facts, rng), write_amount(facts, rng)
    return rng.choice((
        f"{date}, {amount}", f"{amount}, {date}", f"Paid {amount} on {date}", f"Invoice of {date} over {amount}",
        f"{amount} due by {date}", f"On {date} we received {amount}.", f"Please book {amount} for {date}.",
        f"The {amount} were sent on {date}.",
    ))  # fmt: skip


def write_iso(facts: Payment) -> str:
    return f"{facts.year}-{facts.month:02}-{facts.day:02}"


def answer_payment(facts: Payment) -> str:
    return f"{write_iso(facts)} {facts.currency} {facts.cents // 100}.{facts.cents % 100:02}"


# ---- query: a phrase becomes one SQL statement

TABLES = {
    "tickets": ("open", "closed", "urgent", "blocked"), "orders": ("new", "paid", "shipped", "returned"),
    "invoices": ("paid", "overdue", "disputed", "draft"), "devices": ("online", "offline", "broken", "retired"),
    "customers": ("active", "new", "inactive", "blocked"), "contracts": ("active", "expired", "draft", "signed"),
}  # fmt: skip
CITIES = words(
    "Berlin Paris Madrid Rome Vienna Oslo Lisbon Dublin Prague Warsaw Athens Helsinki Zurich Geneva Milan Munich Porto "
    "Lyon Ghent Malmo Tallinn Riga Sofia Zagreb"
)
ORDERS = {
    "created DESC": ("newest first", "the latest first"), "created ASC": ("oldest first", "the earliest first"),
    "total DESC": ("highest total first", "the most expensive first"),
    "total ASC": ("lowest total first", "the cheapest first"), "name ASC": ("sorted by name", "in order of name"),
}  # fmt: skip


@dataclass(frozen=True)
class Query:
    table: str
    status: str = ""
    city: str = ""
    days: int = 0
    total: int = 0
    order: str = ""
    limit: int = 0


def draw_query(rng: random.Random) -> Query:
    table = rng.choice(list(TABLES))
    return Query(
        table,
        rng.choice(TABLES[table]) if rng.random() < 0.7 else "",
        rng.choice(CITIES) if rng.random() < 0.7 else "",
        rng.randrange(2, 100) if rng.random() < 0.5 else 0,
        rng.randrange(1, 100) * 50 if rng.random() < 0.4 else 0,
        rng.choice(list(ORDERS)) if rng.random() < 0.5 else "",
        rng.randrange(2, 51) if rng.random() < 0.4 else 0,
    )


def ask_query(facts: Query, rng: random.Random) -> str:
    lead = rng.choice(("Show me ", "I need ", "List ", "Find ", "Give me ", ""))
    clauses = [
        rng.choice(("all ", "the ", "all the ", "")) + f"{facts.status} {facts.table}".strip(),
        f" {rng.choice(('from', 'in'))} {facts.city}" if facts.city else "",
        rng.choice((" older than {} days", " more than {} days old")).format(facts.days) if facts.days else "",
        rng.choice((" over {} euros", " worth more than {} euros")).format(facts.total) if facts.total else "",
        f", {rng.choice(ORDERS[facts.order])}" if facts.order else "",
        rng.choice((", at most {}", ", up to {}", ", only {}")).format(facts.limit) if facts.limit else "",
    ]
    return lead + "".join(clauses)


def answer_query(facts: Query) -> str:
    tests = [
        f"status = '{facts.status}'" if facts.status else "",
        f"city = '{facts.city}'" if facts.city else "",
        f"age > {facts.days}" if facts.days else "",
        f"total > {facts.total}" if facts.total else "",
    ]
    where = " AND ".join(test for test in tests if test)
    return (
        f"SELECT * FROM {facts.table}"  # noqa: S608 - nobody runs it
        + (f" WHERE {where}" if where else "")
        + (f" ORDER BY {facts.order}" if facts.order else "")
        + (f" LIMIT {facts.limit}" if facts.limit else "")
        + ";"
    )


# ---- restock: a shopping list in a sentence becomes one line per article

COLOURS = words("red blue green white black yellow grey brown")
THINGS = words("mugs lamps chairs pens towels plates bottles candles baskets boxes blankets bowls cups jars bags hooks")
NUMBERS = words("two three four five six seven eight nine ten eleven twelve")


@dataclass(frozen=True)
class Restock:
    lines: tuple[tuple[int, str], ...]


def draw_restock(rng: random.Random) -> Restock:
    count = rng.randrange(1, 4)
    things = zip(rng.sample(COLOURS, count), rng.sample(THINGS, count), strict=True)
    return Restock(
        tuple(
            (rng.randrange(2, 13) if rng.random() < 0.5 else rng.randrange(13, 400), f"{colour} {thing}")
            for colour, thing in things
        )
    )


def ask_restock(facts: Restock, rng: random.Random) -> str:
    spelled = rng.random() < 0.5
    parts = [f"{NUMBERS[n - 2] if spelled and n <= 12 else n} {thing}" for n, thing in facts.lines]
    items = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    frame = rng.choice((
        "We need {}.", "Please order {}.", "We are out of stock, so send {}.", "Could you bring {}?",
        "For the new shop: {}.", "Add {} to the next delivery.",
    ))  # fmt: skip
    return frame.format(items)


def answer_restock(facts: Restock) -> str:
    return "\n".join(f"{n};{thing}" for n, thing in facts.lines)


SUPPORT = Task(draw_complaint, lambda facts: facts.customer, ask_complaint, answer_complaint)
DATES = Task(draw_payment, write_iso, ask_payment, answer_payment)
QUERY = Task(draw_query, answer_query, ask_query, answer_query)
RESTOCK = Task(draw_restock, answer_restock, ask_restock, answer_restock)
# Any: a mapping of tasks over different facts has no common F.
TASKS: dict[str, Task[Any]] = {"support": SUPPORT, "dates": DATES, "query": QUERY, "restock": RESTOCK}
