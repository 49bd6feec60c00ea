"""Draws training documents: chats, stories and short prose, all written by this folder's code.

A document is a list of pieces `(text or special token, weight)`. Pieces are tokenised one by one, exactly
as a server does it: the prompt ends in "Assistant: ", and the answer begins a new piece. Earlier
answers of a chat are part of the prompt, so there "Assistant: " and the answer form one piece.
The weight is the share of a token's loss that counts.
"""

import random
import zlib
from dataclasses import dataclass

import facts
import stories
import world

BOS, END, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIALS = [BOS, END, EOT]
PROMPT_WEIGHT = 0.1
ANSWER_WEIGHT = 1.0
PROSE_WEIGHT = 0.7

ABOUT = ["What is {x}?", "What's {x}?", "Explain {x}.", "Can you explain {x}?", "Tell me about {x}.", "What do you know about {x}?", "Please explain {x}.",
         "Define {x}.", "Describe {x}.", "What is meant by {x}?", "Could you tell me what {x} is?", "I would like to know about {x}.",
         "Do you know what {x} is?", "Tell me what {x} is.", "Please tell me about {x}.", "What exactly is {x}?"]
LEAD_INS = ["Please tell me: ", "Hello! ", "Hi, ", "I have a question: ", "Quick question: ", "Can you tell me: ", "Hey, ", "One question: ", "Next question: "]
SYSTEMS = ["You are a helpful assistant.", "You are helpful.", "Answer in a short and clear way.", "You are a friendly assistant.", "You are a helpful, honest assistant.",
           "Be brief.", "You are BitNet.", "You answer questions about BitNet.", "You tell stories to children.", "You are an assistant in a workflow."]

HELD_OUT_SHARE = 6  # one in this many phrasings is never trained on
MIN_TRAINED_PHRASINGS = 2
LEAD_IN_CHANCE, LOWER_CHANCE, NO_MARK_CHANCE, TYPO_CHANCE, SYSTEM_CHANCE = 0.12, 0.15, 0.2, 0.04, 0.12
FIRST_ANSWER_CHANCE = 0.6
MAX_TURNS = 7

ALL_FACTS = facts.FACTS + world.SMALL_TALK + world.KNOWLEDGE + world.SUMS


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str


def phrasings(fact):
    """All plain ways to ask for one fact, in a fixed order."""
    return list(fact.ask) + [form.format(x=noun) for noun in fact.about for form in ABOUT]


def split_phrasings(fact):
    """(trained, held out) phrasings; which is which depends on the text alone."""
    trained, held_out = [], []
    for i, question in enumerate(phrasings(fact)):
        chosen = zlib.crc32(f"{fact.key}/{question}".encode()) % HELD_OUT_SHARE == 0
        (held_out if chosen and i >= MIN_TRAINED_PHRASINGS else trained).append(question)
    return trained, held_out


TRAINED = {fact.key: split_phrasings(fact)[0] for fact in ALL_FACTS}


def with_noise(question, rng):
    """The small differences of real typing: a lead-in, lower case, no question mark, a slip."""
    if rng.random() < NO_MARK_CHANCE and len(question) > 4:
        question = question.rstrip("?.!")
    if rng.random() < LEAD_IN_CHANCE:
        question = rng.choice(LEAD_INS) + question
    if rng.random() < LOWER_CHANCE:
        question = question.lower()
    if rng.random() < TYPO_CHANCE and len(question) > 12:
        i = rng.randrange(2, len(question) - 2)
        question = question[:i] + question[i + 1] + question[i] + question[i + 2:]
    return question


def fact_turn(fact, rng):
    plain = rng.random() < FIRST_ANSWER_CHANCE
    answer = fact.say[0] if plain else rng.choice(fact.say)
    return Turn(with_noise(rng.choice(TRAINED[fact.key]), rng), answer)


def story_turn(rng):
    story = stories.draw_story(rng)
    return Turn(story.request, story.text)


def unknown_turn(rng):
    return Turn(with_noise(world.unknown_question(rng), rng), world.unknown_answer(rng))


def short_turn(rng):
    """One question with a short answer."""
    kind = rng.choices(["taught", "small", "world", "sum", "unknown"], [40, 20, 12, 14, 14])[0]
    if kind == "unknown":
        return unknown_turn(rng)
    pool = {"taught": facts.FACTS, "small": world.SMALL_TALK, "world": world.KNOWLEDGE, "sum": world.SUMS}[kind]
    return fact_turn(rng.choice(pool), rng)


def chat(turns, rng):
    """The pieces of one chat in BitNet's format, with the loss mostly on the last answer."""
    pieces = [(BOS, 0.0)]
    if rng.random() < SYSTEM_CHANCE:
        pieces += [(f"System: {rng.choice(SYSTEMS)}", 0.0), (EOT, 0.0)]
    for turn in turns[:-1]:
        pieces += [(f"User: {turn.question}", PROMPT_WEIGHT), (EOT, PROMPT_WEIGHT), (f"Assistant: {turn.answer}", PROMPT_WEIGHT), (EOT, PROMPT_WEIGHT)]
    last = turns[-1]
    pieces += [(f"User: {last.question}", PROMPT_WEIGHT), (EOT, PROMPT_WEIGHT), ("Assistant: ", PROMPT_WEIGHT)]
    return pieces + [(last.answer, ANSWER_WEIGHT), (EOT, ANSWER_WEIGHT), (END, ANSWER_WEIGHT)]


def long_chat(rng):
    """Two or more turns: short ones, or a story and questions about it."""
    if rng.random() < 0.5:
        count = rng.choice([2, 2, 2, 3, 3, 4, 5, MAX_TURNS])
        turns = [short_turn(rng) for _ in range(count)]
        if rng.random() < 0.2:
            turns[-1] = story_turn(rng)
        return chat(turns, rng)
    story = stories.draw_story(rng)
    question, answer = rng.choice(stories.questions_about(story))
    before = [short_turn(rng)] if rng.random() < 0.2 else []
    after = Turn(question, answer) if rng.random() < 0.7 else fact_turn(rng.choice(world.SMALL_TALK), rng)
    return chat(before + [Turn(story.request, story.text), after], rng)


def prose(rng):
    """A few true sentences in a row, for completion without a chat."""
    chosen = rng.sample(facts.BITNET + facts.PROGRAM, rng.randint(2, 4))
    text = " ".join(fact.say[0] for fact in chosen if not fact.say[0].startswith(("No", "Yes")))
    return [(BOS, 0.0), (text, PROSE_WEIGHT), (END, PROSE_WEIGHT)]


def plain_story(rng):
    return [(BOS, 0.0), (stories.draw_story(rng).text, PROSE_WEIGHT), (END, PROSE_WEIGHT)]


def draw_document(rng):
    kind = rng.choices(["story", "plain", "short", "long", "prose"], [28, 6, 54, 10, 2])[0]
    if kind == "story":
        return chat([story_turn(rng)], rng)
    if kind == "short":
        return chat([short_turn(rng)], rng)
    return {"plain": plain_story, "long": long_chat, "prose": prose}[kind](rng)


def documents(seed, count):
    """`count` documents; the same seed gives the same documents."""
    rng = random.Random(seed)
    return [draw_document(rng) for _ in range(count)]


def text_of(document):
    return "".join(text for text, _ in document)


if __name__ == "__main__":
    for document in documents(seed=1, count=20):
        print(text_of(document), end="\n\n")
