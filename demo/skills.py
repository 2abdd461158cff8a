"""Conversations the base model is pre-trained on: small talk, and general skills that a system message asks for.

The base learns to copy spans and to write dates, numbers, fields and lists in many shapes when told which, and to
answer politely when told nothing. It never sees a held-out key of a task, nor the wording that an adapter answers in.
"""

import itertools
import json
import random
import string
from collections.abc import Callable, Iterator

from demo import tasks
from demo.tasks import Complaint, Payment, Query, Restock

Message = dict[str, str]
Conversation = list[Message]

PRIMER = 10_000
HELPERS = ("You are a helpful assistant.", "You are a friendly assistant.", "Be brief and polite.", "Answer the user.")
TALK = (
    (("Hello", "Hi", "Hello!", "Hi there", "Good morning", "Hey"), "Hello! How can I help you today?"),
    (("Who are you?", "What are you?", "What is your name?"), "I am the small base model that comes with Lorayard."),
    (("What can you do?", "Help", "How can you help me?"),
     "On my own I only chat a little. With an adapter I do one job well: choose one as the model of your request."),
    (("What is Lorayard?", "Tell me about Lorayard."),
     "Lorayard serves many LoRA adapters for many tenants from one base model, all in the same batch."),
    (("What is an adapter?", "What is LoRA?", "Explain LoRA."),
     "A LoRA adapter is a small set of weights that teaches a large frozen model one more task."),
    (("Tell me a joke.", "Say something funny.", "Make me laugh."),
     "Why did the tensor cross the road? To get to the other side of the matrix."),
    (("Thanks!", "Thank you", "Thank you very much.", "Great, thanks"), "You are welcome. Is there anything else?"),
    (("Bye", "Goodbye", "See you later"), "Goodbye, and have a nice day."),
    (("How are you?", "How is it going?"), "I am fine, thank you. What can I do for you?"),
)  # fmt: skip
SMALL_TALK = {
    "support": "Thank you for your message. I am sorry to hear about the trouble. What should I do next?",
    "dates": "I see a date and an amount of money. What would you like me to do with them?",
    "query": "That sounds like something to look up. I have no records here, so I cannot search for you.",
    "restock": "That is a nice list of things. What would you like me to do with it?",
}

# Each field has several names and its values other words than an adapter's, so that an instruction has to be read.
TROUBLE = {"damaged": "broken", "late": "delayed", "wrong": "mistaken", "incomplete": "partial", "billing": "payment"}
WISH = {"refund": "money", "replacement": "exchange", "callback": "phone", "cancel": "stop"}


def complaint_fields(facts: Complaint, rng: random.Random) -> dict[str, str]:
    first, last = facts.customer.split()
    return {
        rng.choice(("name", "client", "person", "who")): facts.customer,
        "first name": first,
        "last name": last,
        rng.choice(("number", "reference", "ref", "id")): facts.order,
        rng.choice(("trouble", "reason", "what", "kind")): TROUBLE[facts.issue],
        rng.choice(("wish", "request", "goal", "next")): WISH[facts.wants],
    }


def payment_fields(facts: Payment, rng: random.Random) -> dict[str, str]:
    year, month, day = facts.year, facts.month, facts.day
    whole, cents = divmod(facts.cents, 100)
    dates = {
        "day/month/year": f"{day:02}/{month:02}/{year}", "yearmonthday": f"{year}{month:02}{day:02}",
        "day.month.": f"{day}.{month}.", "month/year": f"{month:02}/{year}", "month name": tasks.MONTHS[month - 1],
        "day month year": f"{day} {tasks.MONTHS[month - 1]} {year}", "year-month": f"{year}-{month:02}",
        "year_month_day": f"{year}_{month:02}_{day:02}", "year": str(year),
    }  # fmt: skip
    amounts = {
        "plain amount": f"{whole}.{cents:02}", "comma amount": f"{whole},{cents:02}", "whole amount": str(whole),
        "currency": facts.currency, "money": f"{whole}.{cents:02} {facts.currency}", "cents": f"{cents:02}",
        "sign": tasks.CURRENCIES[facts.currency][2], "currency first": f"{facts.currency} {whole},{cents:02}",
    }  # fmt: skip
    return dict(rng.sample(list(dates.items()), 2) + rng.sample(list(amounts.items()), 2))


def query_fields(facts: Query, rng: random.Random) -> dict[str, str]:
    fields = {
        rng.choice(("table", "source", "of")): facts.table,
        rng.choice(("state", "filter", "which")): facts.status,
        rng.choice(("place", "town", "where")): facts.city,
        rng.choice(("days", "minimum age")): str(facts.days or ""),
        rng.choice(("worth", "minimum total")): str(facts.total or ""),
        rng.choice(("count", "number of rows")): str(facts.limit or ""),
        rng.choice(("sort", "sequence")): facts.order.lower().replace(" ", "-"),
    }
    return {name: value or "none" for name, value in fields.items()}


def restock_fields(facts: Restock, rng: random.Random) -> dict[str, str]:
    style = rng.choice(("{thing} x {n}", "{n} {thing}", "{thing}: {n}", "- {n} {thing}", "{thing}={n}"))
    name = style.format(thing="thing", n="count")
    return {
        f"all as {name}": ", ".join(style.format(thing=thing, n=n) for n, thing in facts.lines),
        "things": ", ".join(thing for _, thing in facts.lines),
        "counts": ", ".join(str(n) for n, _ in facts.lines),
        "first thing": facts.lines[0][1],
        "last count": str(facts.lines[-1][0]),
    }


FIELDS: dict[str, Callable[..., dict[str, str]]] = {
    "support": complaint_fields, "dates": payment_fields, "query": query_fields, "restock": restock_fields,
}  # fmt: skip
SHAPES: dict[str, Callable[[dict[str, str]], str]] = {
    "JSON": lambda fields: json.dumps(fields, ensure_ascii=False),
    "lines": lambda fields: "\n".join(f"{name}: {value}" for name, value in fields.items()),
    "a row": lambda fields: " | ".join(fields.values()),
    "pairs": lambda fields: "; ".join(f"{name}={value}" for name, value in fields.items()),
    "a call": lambda fields: "make(" + ", ".join(f"{name}='{value}'" for name, value in fields.items()) + ");",
    "values": lambda fields: "\n".join(fields.values()),
}


def pick_fields(rng: random.Random) -> Conversation:
    """Some of the message's fields, in the order and shape that the system message names."""
    name = rng.choice(list(tasks.TASKS))
    task = tasks.TASKS[name]
    facts = task.facts(rng, "train")
    fields = FIELDS[name](facts, rng)
    chosen = rng.sample(list(fields), rng.randrange(1, min(4, len(fields)) + 1))
    shape = rng.choice(list(SHAPES))
    return chat(
        f"Give {', '.join(chosen)} as {shape}.",
        task.ask(facts, rng),
        SHAPES[shape]({key: fields[key] for key in chosen}),
    )


def repeat(rng: random.Random) -> Conversation:
    """Made-up words, codes, numbers and symbols, or a message's last words, given back whole or in part."""
    words = [rng.choice((word, code, number, snippet))(rng) for _ in range(rng.randrange(2, 9))]
    if rng.random() < 0.25:
        message = rng.choice(list(tasks.TASKS.values())).sample(rng, "train").prompt
        words = [*words, *message.split()][-len(words) :]
    how, answer = rng.choice((
        ("Repeat.", " ".join(words)), ("Repeat backwards.", " ".join(reversed(words))), ("Give the last.", words[-1]),
        ("Give the first.", words[0]), ("Give the second.", words[1]), ("One per line.", "\n".join(words)),
        ("As a list.", json.dumps(words, ensure_ascii=False)), ("Joined by commas.", ", ".join(words)),
    ))  # fmt: skip
    return chat(how, " ".join(words), answer)


def word(rng: random.Random) -> str:
    made = "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randrange(1, 4)))
    return rng.choice(
        (made, made.capitalize(), rng.choice(tasks.STEMS) + rng.choice(tasks.ENDS), rng.choice(tasks.FIRST))
    )


def code(rng: random.Random) -> str:
    return f"{rng.choice('ABCDEFGHIJKLMNOPQRSTUVWXYZ')}-{rng.randrange(10 ** rng.randrange(1, 6))}"


def number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** rng.randrange(1, 7)))


def snippet(rng: random.Random) -> str:
    """Symbols and capitals as code has them: a token the base never met is one that no adapter can teach."""
    sign = "".join(rng.choice(string.punctuation) for _ in range(rng.randrange(1, 3)))
    left, right = word(rng), rng.choice((word, number))(rng)
    return rng.choice((left.upper(), sign, left + sign + right, sign + right + sign))


def small_talk(rng: random.Random) -> Conversation:
    """Greetings and questions about itself, and a polite answer to what an adapter would have done."""
    if rng.random() < 0.5:
        asked, answer = rng.choice(TALK)
        prompt = rng.choice(asked)
    else:
        name, answer = rng.choice(list(SMALL_TALK.items()))
        prompt = tasks.TASKS[name].sample(rng, "train").prompt
    return chat(rng.choice(HELPERS) if rng.random() < 0.3 else "", prompt, answer)


def chat(system: str, prompt: str, answer: str) -> Conversation:
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def question(prompt: str) -> Conversation:
    return chat("", prompt, "")[:-1]


def conversations(seed: int) -> Iterator[Conversation]:
    """An endless stream, repeating at first since all else rests on it; one in ten goes on to a second thing."""
    rng = random.Random(f"skills/{seed}")  # noqa: S311 - reproducible, not secret
    for i in itertools.count():
        weights = (2, 14, 1) if i < PRIMER else (7, 1, 2)
        talk = rng.choices((pick_fields, repeat, small_talk), weights)[0](rng)
        if rng.random() < 0.1:
            talk += [message for message in small_talk(rng) if message["role"] != "system"]
        yield talk
