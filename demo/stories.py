"""A grammar of short children's stories.

A plot is a list of paragraphs' sentences in which `(a|b|c)` is a free choice, choices may nest, and
`{name}` is a part of the cast: N, k, he, him, his, He, His are the hero's name, kind and pronouns;
M, m, fhe, fhim, fhis, fHe, fHis are the friend's; obj is a thing ("red ball"), an_obj the same with
its article, place a kind of place ("forest"), food something to eat.
"""

import re
from dataclasses import dataclass

from world import article

INNERMOST_CHOICE = re.compile(r"\(([^()]*)\)")

ANIMALS = ["fox", "rabbit", "bear", "mouse", "cat", "dog", "owl", "bird", "frog", "squirrel", "hedgehog", "duck", "sheep", "pony", "turtle", "bee",
           "elephant", "lion", "hen", "goose", "pig", "goat", "monkey", "penguin", "deer", "wolf", "snail", "horse", "cow", "tiger",
           "whale", "dolphin", "crocodile", "parrot", "zebra", "giraffe", "camel", "spider", "ant", "butterfly", "kangaroo", "koala", "panda", "otter", "beaver", "badger",
           "crab", "seal", "swan", "crow", "eagle", "donkey", "hamster", "kitten", "puppy", "lizard", "raccoon", "mole", "chicken", "lamb", "sparrow", "dinosaur", "worm"]
PEOPLE = ["girl", "boy", "robot", "dragon", "princess", "prince", "king", "queen", "farmer", "baker", "fairy", "giant", "wizard", "child",
          "knight", "pirate", "cook", "teacher", "doctor", "sailor", "gardener", "witch", "ghost", "snowman", "mermaid", "unicorn", "astronaut", "painter", "fisherman",
          "shepherd", "tailor", "clown", "monster", "elf", "dwarf", "miller", "postman", "woman", "man", "scientist", "musician", "hunter", "captain", "nurse"]
FEMALE_KINDS = {"girl", "princess", "queen", "hen", "cow", "fairy", "witch", "mermaid", "woman"}
MALE_KINDS = {"boy", "prince", "king", "giant", "wizard", "man", "snowman", "fisherman", "postman"}
FEMALE_NAMES = ["Mia", "Lily", "Anna", "Emma", "Nora", "Ella", "Ruby", "Rosa", "Lucy", "Clara", "Ida", "Tilda", "Maya", "Zoe", "Bella", "Daisy", "Molly", "Luna"]
MALE_NAMES = ["Finn", "Max", "Tom", "Ben", "Leo", "Sam", "Oscar", "Paul", "Hugo", "Otto", "Felix", "Toby", "Jack", "Emil", "Bruno", "Oliver", "Theo", "Milo"]
ADJECTIVES = ["little", "small", "young", "kind", "brave", "shy", "curious", "clever", "happy", "friendly", "gentle", "lonely"]
PLACES = ["forest", "village", "garden", "valley", "meadow", "town", "park", "wood", "jungle", "castle"]
PLACE_ADJECTIVES = ["quiet", "green", "big", "small", "beautiful", "old", "sunny", "peaceful"]
COLOURS = ["red", "blue", "green", "yellow", "white", "golden", "silver"]
THINGS = ["ball", "kite", "hat", "boat", "key", "bell", "book", "lamp", "box", "basket", "scarf", "cup", "drum", "ring", "flute", "button", "map", "star", "stone", "balloon",
          "umbrella", "lantern", "crown", "violin", "train", "car", "doll", "clock", "mirror", "feather", "shell", "candle", "pencil", "blanket", "whistle", "shoe", "spoon",
          "pot", "bicycle", "guitar", "coat", "glove", "flag", "wagon", "robot", "necklace", "coin", "teapot", "bag", "rope", "ladder", "trumpet", "pillow"]
FOODS = ["apple", "cake", "pear", "cookie", "pie", "loaf of bread", "plum", "carrot", "bowl of soup", "piece of cheese"]
PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "him", "his")}

OPENINGS = [
    "Once upon a time there was {a_k} named {N}. {He} lived in {a_place}.",
    "Once upon a time, {a_k} called {N} lived in {a_place}.",
    "Once upon a time, in {a_place}, there lived {a_k}. {His} name was {N}.",
    "Once there was {a_k} named {N} who lived in {a_place}.",
    "In {a_place} there lived {a_k} named {N}.",
    "There once was {a_k} called {N}. {He} lived in {a_place} (|and knew every path there).",
]
ENDINGS = [
    "(From that day on|After that day), {N} and {M} were (the best of friends|good friends|always together).",
    "{N} went home (with a smile|happy and tired) and (slept well|had sweet dreams) that night.",
    "And {N} never forgot that day.",
    "That evening {N} told everyone in the {place} about it.",
    "And so the day ended (well|happily) for {N} and {M}.",
    "{N} and {M} (laughed|smiled) and were glad to have each other.",
]

# Each plot: (needs the object, text). The hero meets the friend inside the plot.
PLOTS = [
    (True, "One (morning|day), {N} could not find {his} {obj}. {He} looked under the bed and behind the door, but it was not there. {N} was (very sad|close to tears). "
           "Then {a_m} named {M} came by. \"(Why are you sad|What is wrong)?\" asked {M}. \"I have lost my {obj},\" said {N}. \"(Let us look together|I will help you),\" said {M}. "
           "They looked (everywhere|all over the {place}). At last {M} saw something {colour} under (a bush|an old tree). It was the {obj}! \"Thank you, {M}!\" (said|cried) {N}."),
    (True, "One (morning|day), {N} found {an_obj} on the path. \"(Whose {obj} is this|Who has lost this)?\" {he} (asked|wondered). {He} wanted to keep it, but {he} knew that it was not {his_own}. "
           "So {he} went from house to house and asked. At the last house lived {a_m} named {M}. \"That is my {obj}!\" (cried|said) {M}. \"I have looked for it all day.\" "
           "{N} gave it back at once. {M} was so happy that {fhe} gave {N} {a_food}. \"You are honest,\" said {M}."),
    (True, "{N} had {an_obj} that {he} loved very much. One day {a_m} named {M} asked, \"May I play with your {obj}?\" {N} did not want to share. \"No, it is mine,\" {he} said. "
           "{M} went away (sadly|with a sad face). But playing alone was (not much fun|boring). So {N} ran after {M}. \"I am sorry,\" said {N}. \"Let us play together.\" "
           "They played with the {obj} (all afternoon|until the sun went down), and it was much more fun."),
    (True, "It was {N}'s birthday, but {he} thought that everyone had forgotten it. {He} sat alone at the window. (Suddenly|Then) there was a knock at the door. "
           "Outside stood {a_m} named {M} with {an_obj}. \"Happy birthday, {N}!\" said {M}. \"This {obj} is for you.\" {N} (was so happy|jumped for joy). "
           "They ate {a_food} together and (sang songs|danced) until it was dark. It was the best birthday of all."),
    (True, "One day {N} saw {an_obj} in (a shop window|the market). {He} wanted it (so much|very much), but {he} had no money. So {he} worked hard. {He} carried water for {a_m} named {M}, "
           "and {he} swept the floor. After (a week|seven days) {M} smiled. \"You have worked well,\" said {M}, and gave {him} (five|ten) coins. {N} ran to buy the {obj}. "
           "{He} was proud, because {he} had earned it {himself}."),
    (True, "One (windy|stormy) day, the wind took {N}'s {obj} and carried it up into a tall tree. {N} jumped and jumped, but the branch was too high. "
           "{A_m} named {M} saw it. \"Stand on my back,\" said {M}. {N} climbed up (carefully|slowly) and reached for the {obj}. (It was hard|It was not easy), but at last {he} had it. "
           "\"We did it!\" (cried|called) {N}. \"Together we are tall,\" said {M} and laughed."),
    (True, "One day {N} broke a {obj}. It belonged to {a_m} named {M}. {N} was afraid and hid the pieces (under the bed|in a box). But {he} could not sleep that night. "
           "In the morning {he} went to {M} and told the truth. \"I broke your {obj}. I am sorry,\" {he} said. {M} was quiet for a moment. "
           "\"Thank you for telling me,\" said {M}. \"We can mend it.\" They worked together, and soon the {obj} was (almost as good as new|whole again)."),
    (True, "One day {N} dug a hole in the ground and found an old box. Inside was {an_obj}. It (shone|sparkled) in the sun. {N} showed it to {his} friend {M}, {a_m}. "
           "\"It must be a treasure!\" said {M}. \"What shall we do with it?\" {N} thought for a while. \"We will give it to the whole {place},\" {he} said. "
           "So they put the {obj} in the middle of the {place}, where everyone could see it. All were glad."),
    (False, "One day {N} went for a long walk and lost the way. It grew dark, and {N} was afraid. \"Hello? Is anyone there?\" {he} called. "
            "A (soft|kind) voice answered. It was {a_m} named {M}. \"(Do not be afraid|Do not worry),\" said {M}. \"I know the way.\" {M} walked in front, and {N} followed. "
            "Soon they saw the lights of the {place}. \"Thank you, {M},\" said {N}. \"(Next time I will take care|You are a true friend).\""),
    (False, "One (cold|snowy) winter night, there was a knock at the door. {N} opened it. Outside stood {a_m} named {M}, wet and cold. \"May I come in?\" asked {M}. "
            "\"Of course,\" said {N}. {He} made a fire and gave {M} {a_food}. They sat by the fire and told stories (all evening|until midnight). "
            "In the morning the snow had stopped. \"I will never forget your kindness,\" said {M}."),
    (False, "{N} wanted to learn to swim, but {he} was afraid of the water. {A_m} named {M} said, \"I will stay beside you.\" First {N} put one foot in the (lake|river). "
            "Then {he} went in up to the knees. The next day {he} tried again, and the day after that. {M} always stayed near. "
            "(At last|After a week) {N} could swim to the other side. \"I did it!\" {he} (cried|called). \"You were brave,\" said {M}."),
    (False, "One day there was a big race in the {place}. {N} was not fast, but {he} wanted to try. {A_m} named {M} was the fastest of all. The race began, and {M} ran far ahead. "
            "But then {M} fell and hurt {fhis} foot. {N} stopped. \"Lean on me,\" {he} said. They walked slowly to the end, and everyone (clapped|cheered). "
            "\"You did not win the race,\" said {M}, \"but you won a friend.\""),
    (False, "One morning {N} heard a small cry. {He} followed the sound and found {a_m} named {M} in a deep hole. \"Please help me,\" said {M}. \"I fell in and cannot get out.\" "
            "{N} looked for a long branch and held it down. \"Hold on tight!\" {he} said. {N} pulled and pulled. At last {M} was free. "
            "\"You saved me,\" said {M}. \"If you ever need help, call me.\""),
    (False, "{N} planted a tiny seed in the garden. Every day {he} gave it water, but nothing happened. \"Maybe it is a bad seed,\" {he} said (sadly|with a sigh). "
            "\"Be patient,\" said {his} friend {M}, {a_m}. \"Good things take time.\" So {N} waited. One morning there was a small green leaf. "
            "The plant grew and grew, and in summer it had a big {colour} flower. \"You were right,\" said {N}."),
    (False, "One night {N} could not sleep. It was dark, and there was a strange noise. \"Who is there?\" {he} asked in a small voice. {He} took a lamp and looked outside. "
            "There sat {a_m} named {M}, who was singing to the moon. \"Did I wake you?\" asked {M}. {N} laughed. \"I thought you were a monster!\" {he} said. "
            "They sat together and counted the stars until {N} was tired. {He} was not afraid of the dark any more."),
    (False, "{N} wanted to bake a cake, but {he} had no (eggs|flour|sugar). So {he} went to {his} neighbour {M}, {a_m}. \"Can you give me some?\" asked {N}. "
            "\"Yes,\" said {M}, \"if I may help you.\" They mixed and stirred, and soon the whole kitchen was white with flour. The cake was not (pretty|straight), but it tasted (wonderful|very good). "
            "\"Everything tastes better with a friend,\" said {M}."),
    (False, "One day {N} and {his} friend {M}, {a_m}, had a quarrel. Both wanted the last {food}. \"It is mine!\" said {N}. \"No, it is mine!\" said {M}. They did not speak for (a whole day|two days). "
            "Then {N} had an idea. {He} cut the {food} into two halves and brought one to {M}. \"I am sorry,\" {he} said. \"I am sorry, too,\" said {M}. "
            "They ate together, and the {food} had never tasted so good."),
    (False, "It had not rained for many weeks, and the {place} was dry. All were thirsty. {N} said, \"I will go and find water.\" {He} walked for (a long time|many hours). "
            "On a hill {he} met {a_m} named {M}. \"I know a spring,\" said {M}, \"but a big stone lies on it.\" They pushed with all their strength. The stone rolled away, and clear water came out. "
            "Soon everyone in the {place} had enough to drink."),
    (False, "{N} loved to sing, but {he} was too shy to sing in front of others. One day {a_m} named {M} heard {him} in the {place}. \"What a beautiful song!\" said {M}. "
            "\"Will you sing at the (feast|festival) tonight?\" {N} was (very nervous|afraid), but {M} held {his} hand. {N} took a deep breath and began to sing. "
            "Everyone was silent, and then everyone clapped. {N} was (happy and proud|shy no more)."),
    (False, "One day a big storm came. The wind blew the roof from the house of {a_m} named {M}. \"Where shall I sleep now?\" said {M}. "
            "\"You can stay with me,\" said {N}. The next morning {N} brought wood and nails, and they built a new roof. It took (three days|a whole week). "
            "When it was done, {M} made {a_food} for both of them. \"A friend is better than a roof,\" said {M}."),
    (False, "{N} wanted to see the sea. So {he} put {a_food} in a bag and went off. On the way {he} met {a_m} named {M}. \"Where are you going?\" asked {M}. "
            "\"To the sea,\" said {N}. \"May I come with you?\" asked {M}. They walked over hills and through fields for (three|two|four) days. "
            "Then they saw it: blue water, as far as the eye could see. They (ran into the waves|played in the sand) and laughed."),
    (False, "{N} was the smallest of all in the {place}, and the others often laughed at {him}. One day the key of {M}, {a_m}, fell into a small crack in the wall. "
            "Nobody could reach it. \"Let me try,\" said {N}. {He} was so small that {he} could reach deep into the crack, and {he} brought out the key. "
            "\"It is good to be small!\" said {M}. Nobody laughed at {N} again."),
    (False, "One day {N} told everyone that {he} had seen a monster. It was not true. {M}, {a_m}, was afraid and hid (under a table|behind a tree) all day. "
            "When {N} saw how afraid {M} was, {he} felt bad. \"There is no monster,\" {N} said. \"I made it up. I am sorry.\" "
            "{M} was angry at first, but then {fhe} forgave {him}. After that {N} always told the truth."),
    (False, "Every night {N} looked at the moon and wished to go there. \"I will build a ladder,\" {he} said. {A_m} named {M} helped {him}. They built all day, but the ladder was far too short. "
            "{N} was sad. Then {M} pointed at the (lake|pond). \"Look,\" {fhe} said. There was the moon, shining in the water. "
            "\"Now the moon has come to us,\" said {N} and smiled."),
    (False, "One day {N} saw that {his} friend {M}, {a_m}, was ill. {M} lay in bed and could not eat. \"What can I do?\" asked {N}. \"Tell me a story,\" said {M}. "
            "So {N} sat down by the bed and told one story after the other. {He} also cooked a warm soup. After (three|two) days {M} felt better. "
            "\"Your stories were the best medicine,\" said {M}."),
    (False, "{N} found a small egg in the grass. It was cold, so {he} kept it warm (in {his} scarf|under a blanket). {A_m} named {M} came to look. \"What will come out of it?\" asked {M}. "
            "\"We must wait and see,\" said {N}. One morning the egg cracked, and a tiny {colour} bird looked out. It stayed with them all summer. "
            "In autumn it flew away, but every spring it came back to sing."),
    (False, "One hot day, {N} was resting under a tree. {A_m} named {M} came by and looked very tired. \"I have walked all day and I am so hungry,\" said {M}. "
            "{N} had only one {food}, but {he} gave half of it to {M}. The next week {N} lost {his} way in the hills and had nothing to eat. "
            "Then {M} came and shared {fhis} bread with {him}. \"You helped me, and now I help you,\" said {M}."),
    (False, "In the middle of the {place} was a river, but there was no bridge. {N} lived on one side, and {a_m} named {M} lived on the other. Every day they waved to each other. "
            "\"Let us build a bridge,\" called {N}. Each of them began on one side. They carried (stones|wood) for many days. At last they met in the middle. "
            "\"Good day, neighbour!\" said {M}, and they shook hands."),
    (True, "{N} had {an_obj}, and {he} thought that it was magic. \"It makes me brave,\" {he} said. One day {N} met {a_m} named {M}, who had fallen into the river. {N} jumped in and pulled {M} out. "
           "Only then did {he} see that the {obj} was still at home. \"I was brave without it!\" said {N}. \"The magic was in you,\" said {M}. "
           "{N} still kept the {obj}, because it was pretty."),
    (True, "{N} and {a_m} named {M} played hide and seek. {M} hid so well that {N} could not find {fhim}. {He} looked behind every tree and under every stone. "
           "Then {he} saw {an_obj} in the grass. It belonged to {M}! A little further, two eyes looked out of a bush. \"I have found you!\" called {N}. "
           "\"My {obj} gave me away,\" said {M}, and both of them laughed."),
]

REQUESTS_PLAIN = ["Tell me a story.", "Tell me a story", "Can you tell me a story?", "I want to hear a story.", "Please tell me a bedtime story.", "Write a short story.",
                  "Tell me another story.", "Do you know a story?", "A story, please.", "Write a story for children."]
REQUESTS = ["Tell me a story about {x}.", "Tell me a story about {x}", "Can you tell me a story about {x}?", "Write a short story about {x}.", "I want to hear a story about {x}.",
            "Please tell me a story about {x}.", "A story about {x}, please.", "Do you know a story about {x}?", "Write a story about {x}.", "Make up a story about {x}.",
            "story about {x}", "tell me a story about {x}", "Please write a bedtime story about {x}.", "Could you tell me a short story about {x}?", "Tell me about {x} in a story."]


@dataclass(frozen=True)
class Story:
    """One story, its cast, and one request it answers."""

    text: str
    request: str
    cast: dict
    plot: int


def expand(text, rng):
    """Replaces every `(a|b)` by one of its branches, innermost first."""
    while True:
        text, count = INNERMOST_CHOICE.subn(lambda m: rng.choice(m.group(1).split("|")), text)
        if count == 0:
            return text


def _gender(kind, rng):
    if kind in FEMALE_KINDS:
        return "f"
    return "m" if kind in MALE_KINDS else rng.choice("fm")


def draw_cast(rng):
    kinds = ANIMALS * 2 + PEOPLE
    hero, friend = rng.sample(kinds, 2)
    while friend == hero:
        friend = rng.choice(kinds)
    sexes = _gender(hero, rng), _gender(friend, rng)
    names = [rng.choice(FEMALE_NAMES if sex == "f" else MALE_NAMES) for sex in sexes]
    while names[0] == names[1]:
        names[1] = rng.choice(FEMALE_NAMES if sexes[1] == "f" else MALE_NAMES)
    he, him, his = PRONOUNS[sexes[0]]
    fhe, fhim, fhis = PRONOUNS[sexes[1]]
    colour, place = rng.choice(COLOURS), rng.choice(PLACES)
    thing = f"{colour} {rng.choice(THINGS)}"
    adjectives = rng.sample(ADJECTIVES, 2)
    food = rng.choice(FOODS)
    a_m = article(f"{adjectives[1]} {friend}" if rng.random() < 0.6 else friend)
    return {
        "N": names[0], "k": hero, "a_k": article(f"{adjectives[0]} {hero}"), "he": he, "him": him, "his": his, "He": he.capitalize(), "His": his.capitalize(),
        "his_own": "hers" if sexes[0] == "f" else "his", "himself": "herself" if sexes[0] == "f" else "himself",
        "M": names[1], "m": friend, "a_m": a_m, "A_m": a_m[0].upper() + a_m[1:], "fhe": fhe, "fhim": fhim, "fhis": fhis, "fHe": fhe.capitalize(), "fHis": fhis.capitalize(),
        "obj": thing, "an_obj": article(thing), "colour": colour, "place": place, "a_place": article(f"{rng.choice(PLACE_ADJECTIVES)} {place}"),
        "food": food, "a_food": article(food),
    }


def _request(cast, has_object, rng):
    hero, friend, thing = article(cast["k"]), article(cast["m"]), cast["an_obj"]
    subjects = [hero] * 6 + [f"{hero} and {friend}"] * 3 + [cast["a_k"], f"{hero} named {cast['N']}", f"{cast['N']} the {cast['k']}", f"{hero} in {article(cast['place'])}"]
    if has_object:
        subjects += [thing] * 3 + [f"{hero} and {thing}"] * 3
    if rng.random() < 0.12:
        return rng.choice(REQUESTS_PLAIN)
    return rng.choice(REQUESTS).format(x=rng.choice(subjects))


def draw_story(rng):
    plot = rng.randrange(len(PLOTS))
    has_object, body = PLOTS[plot]
    cast = draw_cast(rng)
    parts = [rng.choice(OPENINGS), body]
    if rng.random() < 0.8:
        parts.append(rng.choice(ENDINGS))
    text = " ".join(expand(part, rng).format(**cast) for part in parts)
    text = re.sub(r" +([.,])", r"\1", re.sub(r"  +", " ", text))
    return Story(text, _request(cast, has_object, rng), cast, plot)


def questions_about(story):
    """(question, answer) pairs that the story's own text settles."""
    cast = story.cast
    return [
        (f"What was the name of the {cast['k']}?", f"The {cast['k']} was called {cast['N']}."),
        (f"What was the {cast['k']} called?", f"The {cast['k']} was called {cast['N']}."),
        (f"Where did {cast['N']} live?", f"{cast['N']} lived in {cast['a_place']}."),
        (f"Who was {cast['M']}?", f"{cast['M']} was {article(cast['m'])}."),
        (f"What kind of animal was {cast['N']}?" if cast["k"] in ANIMALS else f"Who was {cast['N']}?", f"{cast['N']} was {article(cast['k'])}."),
    ]
