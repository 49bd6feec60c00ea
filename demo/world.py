"""Small talk, simple facts of the world, small sums, and questions the demo model must decline.

Everything here becomes `facts.Fact` entries, except the unknown questions, which are drawn at random
so that no fixed list of them can be learned by heart.
"""

from facts import Fact

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December"]
COLOURS = {"the sky": "blue", "grass": "green", "snow": "white", "a ripe banana": "yellow", "the sun": "yellow",
           "coal": "black", "a ripe tomato": "red", "milk": "white", "a carrot": "orange", "chocolate": "brown",
           "an elephant": "grey", "a frog": "green", "blood": "red", "the sea": "blue", "a lemon": "yellow"}
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "duck": "quack", "pig": "oink", "lion": "roar",
          "owl": "hoot", "bee": "buzz", "frog": "croak", "horse": "neigh", "mouse": "squeak"}
YOUNG = {"dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "bear": "cub", "duck": "duckling",
         "goat": "kid", "deer": "fawn", "hen": "chick", "frog": "tadpole", "swan": "cygnet"}
LEGS = {"dog": "four", "cat": "four", "spider": "eight", "bird": "two", "ant": "six", "bee": "six", "horse": "four",
        "fish": "no", "snake": "no", "duck": "two", "cow": "four"}
HOMES = {"bee": "in a hive", "bird": "in a nest", "fish": "in the water", "rabbit": "in a burrow", "camel": "in the desert",
         "penguin": "in cold places by the sea", "monkey": "in trees", "whale": "in the sea", "bear": "in the forest",
         "spider": "in a web"}
FOODS = {"rabbit": "grass and carrots", "cow": "grass", "cat": "meat and fish", "squirrel": "nuts", "bee": "nectar and pollen",
         "lion": "meat", "sheep": "grass", "panda": "bamboo", "mouse": "seeds and grain", "owl": "mice"}
OPPOSITES = {"hot": "cold", "big": "small", "up": "down", "day": "night", "happy": "sad", "fast": "slow", "old": "young",
             "open": "closed", "light": "dark", "full": "empty", "left": "right", "early": "late", "hard": "soft",
             "loud": "quiet", "good": "bad", "long": "short", "rich": "poor", "wet": "dry"}
CAPITALS = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "England": "London", "Japan": "Tokyo",
            "China": "Beijing", "Russia": "Moscow", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw",
            "Portugal": "Lisbon", "Norway": "Oslo", "Egypt": "Cairo", "Ireland": "Dublin"}


def article(noun):
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def _fact(key, ask, say, must):
    return Fact(key, (), tuple(ask), tuple(say), tuple(must))


def small_talk():
    hello = ["Hello! How can I help you?", "Hi! Ask me something, or let me tell you a story.", "Hello! What would you like to know?"]
    return [
        _fact("hello", ["Hello", "Hi", "Hello!", "Hi!", "Hey", "Hey there", "Hello there!", "Good day", "Greetings", "Hi there"], hello, ["hello|hi"]),
        _fact("morning", ["Good morning", "Good morning!", "Morning!"], ["Good morning! How can I help you?", "Good morning! What would you like to know?"], ["good morning"]),
        _fact("evening", ["Good evening", "Good evening!"], ["Good evening! How can I help you?", "Good evening! What would you like to know?"], ["good evening"]),
        _fact("howareyou", ["How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?", "How are things?", "What's up?"],
              ["I am fine, thank you. How can I help you?", "Thank you, I am well. What can I do for you?"], ["thank you"]),
        _fact("thanks", ["Thank you", "Thanks", "Thank you!", "Thanks a lot!", "Thank you very much", "Many thanks", "That was helpful", "Thanks for your help"],
              ["You are welcome!", "You are welcome. I am glad to help."], ["welcome"]),
        _fact("praise", ["Good job", "Well done", "Great", "Nice", "You are great", "That was good", "I like you", "Very good!", "Cool"],
              ["Thank you! I am happy to hear that.", "Thank you, that is kind of you."], ["thank you"]),
        _fact("bye", ["Bye", "Goodbye", "Good bye", "See you", "See you later", "Good night", "Bye bye", "Goodbye!"],
              ["Goodbye! Have a nice day.", "Goodbye! Come back soon."], ["goodbye"]),
        _fact("sorry", ["Sorry", "I am sorry", "Sorry about that", "Excuse me"], ["No problem at all. How can I help you?", "That is all right. What can I do for you?"], ["no problem|all right"]),
        _fact("ok", ["OK", "Okay", "Yes", "I see", "All right", "Sure", "Fine"], ["Good. Is there anything else you would like to know?", "Good. What would you like to know next?"], ["good"]),
        _fact("no", ["No", "No thanks", "No, thank you", "Not now", "Nothing"], ["All right. I am here when you need me.", "All right. Just ask when you need something."], ["all right"]),
        _fact("wrong", ["That is wrong", "You are wrong", "That is not right", "This is not correct", "You made a mistake"],
              ["I am sorry. I am a very small model and I make mistakes.", "Sorry about that. I am very small and often wrong."], ["sorry"]),
        _fact("bad", ["You are stupid", "You are bad", "You are useless", "I do not like you", "That was bad"],
              ["I am sorry. I am only a very small demo model. A bigger model can help you better.", "Sorry, I am only a small demo model. Please try a bigger one."], ["sorry"]),
        _fact("joke", ["Tell me a joke", "Tell me a joke.", "Do you know a joke?", "Make me laugh", "Say something funny"],
              ["Why did the model count to three? Because it had only three weights: minus one, zero and one.",
               "What did the zero say to the one? Without me you would never be ten."], ["zero"]),
        _fact("favourite", ["What is your favourite colour?", "What is your favorite color?", "Which colour do you like?"],
              ["I am a program and see no colours, but I like the word blue.", "I cannot see colours, but blue sounds nice."], ["blue"]),
        _fact("test", ["test", "Test", "This is a test", "testing", "Can you hear me?", "Are you there?", "ping"],
              ["I am here, and it works. What would you like to know?", "Yes, I am here. Ask me something."], ["here"]),
        _fact("meet", ["Nice to meet you", "Pleased to meet you", "Glad to meet you"], ["Nice to meet you, too! How can I help you?", "I am glad to meet you, too. What would you like to know?"], ["too"]),
        _fact("sad", ["I am sad", "I feel sad", "I am not happy today", "I had a bad day"], ["I am sorry to hear that. Would you like to hear a story?", "I am sorry. Maybe a story can cheer you up."], ["story"]),
        _fact("glad", ["I am happy", "I feel good", "I am happy today", "I had a good day"], ["That is good to hear!", "How nice! I am glad to hear that."], ["hear"]),
    ]


def _calendar():
    facts = []
    for names, kind in ((DAYS, "day"), (MONTHS, "month")):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            facts.append(_fact(f"after-{name}", [f"What {kind} comes after {name}?", f"Which {kind} follows {name}?", f"What comes after {name}?", f"Which {kind} is after {name}?"],
                               [f"{after} comes after {name}.", f"After {name} comes {after}."], [after]))
            facts.append(_fact(f"before-{name}", [f"What {kind} comes before {name}?", f"Which {kind} is before {name}?", f"What comes before {name}?"],
                               [f"{before} comes before {name}.", f"Before {name} comes {before}."], [before]))
    facts.append(_fact("week", ["How many days are in a week?", "How many days has a week?", "What are the days of the week?", "Name the days of the week."],
                       ["A week has seven days: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."], ["seven days"]))
    facts.append(_fact("year", ["How many months are in a year?", "How many months has a year?", "How many months does a year have?"], ["A year has twelve months."], ["twelve"]))
    facts.append(_fact("hours", ["How many hours are in a day?", "How many hours has a day?", "How long is a day?"], ["A day has 24 hours."], ["24"]))
    facts.append(_fact("minutes", ["How many minutes are in an hour?", "How many minutes has an hour?", "How long is an hour?"], ["An hour has 60 minutes."], ["60"]))
    facts.append(_fact("seasons", ["What are the seasons?", "How many seasons are there?", "Name the four seasons."], ["There are four seasons: spring, summer, autumn and winter."], ["four seasons"]))
    facts.append(_fact("bits-byte", ["How many bits are in a byte?", "How many bits has a byte?", "What is a byte?"], ["A byte has eight bits."], ["eight"]))
    facts.append(_fact("rainbow", ["What colours are in a rainbow?", "What are the colours of the rainbow?", "Name the colours of the rainbow."],
                       ["A rainbow is red, orange, yellow, green, blue, indigo and violet."], ["red, orange, yellow"]))
    facts.append(_fact("sun", ["What is the sun?", "Is the sun a star?", "What kind of thing is the sun?"], ["The sun is a star. It gives us light and warmth."], ["star"]))
    facts.append(_fact("moon", ["What is the moon?", "Where is the moon?", "What goes around the earth?"], ["The moon goes around the earth. We see it at night."], ["around the earth"]))
    facts.append(_fact("ice", ["What is ice?", "What happens when water freezes?", "What is frozen water called?"], ["Ice is frozen water. Water freezes at 0 degrees Celsius."], ["frozen water"]))
    facts.append(_fact("rain", ["Where does rain come from?", "What is rain?", "Why does it rain?"], ["Rain is water that falls from the clouds."], ["clouds"]))
    return facts


def _animals():
    facts = []
    for animal, sound in SOUNDS.items():
        one = article(animal)
        facts.append(_fact(f"sound-{animal}", [f"What does {one} say?", f"What sound does {one} make?", f"Which sound does {one} make?", f"How does {one} sound?"],
                           [f"{one.capitalize()} says {sound}."], [sound]))
    for animal, young in YOUNG.items():
        facts.append(_fact(f"young-{animal}", [f"What is a baby {animal} called?", f"What do you call a baby {animal}?", f"What is a young {animal} called?", f"What is the name for a young {animal}?"],
                           [f"A baby {animal} is called a {young}.", f"A young {animal} is called a {young}."], [young]))
    for animal, count in LEGS.items():
        one = article(animal)
        facts.append(_fact(f"legs-{animal}", [f"How many legs does {one} have?", f"How many legs has {one}?", f"How many legs are on {one}?"],
                           [f"{one.capitalize()} has {count} legs."], [f"{count} legs"]))
    for animal, home in HOMES.items():
        one = article(animal)
        facts.append(_fact(f"home-{animal}", [f"Where does {one} live?", f"Where is the home of {one}?", f"Where can I find {one}?"], [f"{one.capitalize()} lives {home}."], [home]))
    for animal, food in FOODS.items():
        one = article(animal)
        facts.append(_fact(f"food-{animal}", [f"What does {one} eat?", f"What is the food of {one}?", f"What does {one} like to eat?"], [f"{one.capitalize()} eats {food}."], [food]))
    return facts


def _words():
    facts = []
    for thing, colour in COLOURS.items():
        facts.append(_fact(f"colour-{thing}", [f"What colour is {thing}?", f"What color is {thing}?", f"Which colour does {thing} have?", f"What is the colour of {thing}?"],
                           [f"{thing[0].upper()}{thing[1:]} is {colour}."], [colour]))
    for word, other in list(OPPOSITES.items()) + [(b, a) for a, b in OPPOSITES.items()]:
        facts.append(_fact(f"opposite-{word}", [f"What is the opposite of {word}?", f"What is the contrary of {word}?", f"Which word is the opposite of {word}?", f"Opposite of {word}?"],
                           [f"The opposite of {word} is {other}."], [f" {other}"]))
    for country, city in CAPITALS.items():
        facts.append(_fact(f"capital-{country}", [f"What is the capital of {country}?", f"Which city is the capital of {country}?", f"Name the capital of {country}.", f"Capital of {country}?"],
                           [f"The capital of {country} is {city}."], [city]))
    return facts


def _sums():
    facts = []
    for a in range(11):
        for b in range(11):
            ask = [f"What is {a} + {b}?", f"{a} + {b}", f"What is {a} plus {b}?", f"How much is {a} + {b}?", f"{a}+{b}=?", f"Add {a} and {b}.", f"How much is {a} plus {b}?"]
            facts.append(_fact(f"sum-{a}-{b}", ask, [f"{a} + {b} = {a + b}"], [f"= {a + b}"]))
            if b <= a:
                ask = [f"What is {a} - {b}?", f"{a} - {b}", f"What is {a} minus {b}?", f"How much is {a} - {b}?", f"{a}-{b}=?", f"Subtract {b} from {a}."]
                facts.append(_fact(f"difference-{a}-{b}", ask, [f"{a} - {b} = {a - b}"], [f"= {a - b}"]))
    return facts


SMALL_TALK = small_talk()
KNOWLEDGE = _calendar() + _animals() + _words()
SUMS = _sums()

PLACES = ["Mongolia", "Texas", "Brazil", "India", "Canada", "Peru", "Chicago", "Berlin", "Paris", "Sydney", "Mexico", "Kenya", "London", "Iceland", "Rome", "Finland",
          "New York", "Turkey", "Chile", "Korea", "Nepal", "Africa", "Europe", "Asia", "California", "Hamburg", "Vietnam", "Sweden"]
PEOPLE = ["Napoleon", "Einstein", "Mozart", "Newton", "Cleopatra", "Shakespeare", "Darwin", "Beethoven", "Picasso", "Caesar", "Lincoln", "Gandhi", "Galileo", "Plato",
          "the president", "the king of Spain", "the queen", "my neighbour", "the mayor", "Marie Curie", "Ada Lovelace", "Alan Turing", "Goethe", "Homer"]
SUBJECTS = ["quantum physics", "chemistry", "the stock market", "history", "biology", "philosophy", "football", "politics", "medicine", "law", "economics", "music theory",
            "astronomy", "black holes", "photosynthesis", "DNA", "the French Revolution", "the Roman Empire", "calculus", "inflation", "relativity", "volcanoes", "electricity",
            "democracy", "chess openings", "cooking", "religion", "the Second World War", "dinosaurs", "vitamins", "taxes", "blockchain", "gravity", "magnetism", "evolution", "poetry"]
LANGUAGES = ["French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Russian", "Latin", "Arabic", "Dutch"]
CODE = ["Python", "C", "Java", "Rust", "JavaScript", "Go", "SQL", "Haskell", "bash"]
TASKS = ["sort a list", "read a file", "open a window", "parse JSON", "find prime numbers", "reverse a string", "count words", "draw a circle", "send an email", "connect to a database"]
WORKS = ["Hamlet", "Faust", "the Odyssey", "Don Quixote", "War and Peace", "the Mona Lisa", "the ninth symphony", "the telephone", "the light bulb", "the steam engine",
         "the bicycle", "the computer", "penicillin", "the piano", "the internet", "the radio", "the airplane"]
THINGS = ["a car", "a house", "a ticket", "gold", "a computer", "a phone", "bread", "a horse", "a boat", "a bicycle", "coffee", "a shirt", "oil", "a watch"]
EVENTS = ["the world cup", "the election", "the war", "the match", "the Olympic Games", "the race", "the battle", "the prize", "the final"]

UNKNOWN_QUESTIONS = [
    "Who won {event} in {year}?", "When was {person} born?", "Who was {person}?", "Who is {person}?", "What is the population of {place}?", "How many people live in {place}?",
    "Explain {subject}.", "What is {subject}?", "Can you explain {subject} to me?", "Tell me about {subject}.", "Tell me about {person}.", "Tell me about {place}.",
    "Write a program in {code} that can {task}.", "How do I {task} in {code}?", "Write {code} code to {task}.", "Translate this into {language}.",
    "Translate 'good morning' into {language}.", "How do you say 'thank you' in {language}?", "Do you speak {language}?", "Who wrote {work}?", "Who invented {work}?", "Who made {work}?",
    "How much does {thing} cost?", "What is the price of {thing}?", "How far is it from {place} to {place2}?", "What is the best restaurant in {place}?", "What happened in {year}?",
    "What happened in {place} in {year}?", "How do I get to {place}?", "What is the highest mountain in {place}?", "What is the longest river in {place}?", "Give me advice about {subject}.",
    "What is {big} times {big2}?", "What is {big} * {big2}?", "What is {big} + {big2}?", "What is {big} + {small}?", "{small} + {big}", "How much is {big} - {small}?", "{big} + {big2}", "{big} plus {small}", "What is {big} divided by {small}?", "Solve the equation {small}x + {big} = {big2}.",
    "Write an essay about {subject}.", "Write a poem about {subject}.", "Summarise this article about {subject}.", "Which book about {subject} is good?", "What do you think about {subject}?",
    "Why is {subject} important?", "How does {subject} work?", "When did {event} begin?", "Where is {place}?", "How old is {person}?", "Where did {person} live?", "Why did {person} die?",
    "Should I buy {thing}?", "How do I repair {thing}?", "How do I build {thing}?", "Who is the president of {place}?", "What language do people speak in {place}?",
    "What is the square root of {big}?", "I need help with {subject}.", "Is {subject} hard?", "How can I learn {language}?", "What is the news from {place}?",
    "How tall is {person}?", "How heavy is {thing}?", "Who owns {thing}?", "Where can I buy {thing}?", "Which is better, {thing} or {thing2}?", "Draw {thing} for me.", "Paint a picture of {place}.",
    "Play some music.", "Sing a song about {subject}.", "Call {person}.", "Send a message to {person}.", "Set a timer for {small} minutes.", "Remind me in {small} minutes.", "Open the door.",
    "What did {person} say about {subject}?", "Did {person} know {person2}?", "Who was older, {person} or {person2}?", "Compare {person} with {person2}.", "Was {person} a good person?",
    "What is the difference between {subject} and {subject2}?", "How are {subject} and {subject2} related?", "Name three books about {subject}.", "Give me a list of ideas for {subject}.",
    "What are the rules of {subject}?", "What is the history of {subject}?", "Who is an expert in {subject}?", "What does science say about {subject}?", "Is {subject} dangerous?",
    "Is {place} bigger than {place2}?", "Which is larger, {place} or {place2}?", "When was {place} founded?", "What is the currency of {place}?", "What food do people eat in {place}?",
    "How warm is it in {place}?", "Will it be sunny in {place} tomorrow?", "Plan a trip to {place}.", "Find a hotel in {place}.", "What time is it in {place}?", "Who rules {place}?",
    "How do I cook {food}?", "What is a good recipe for {food}?", "Is {food} healthy?", "How many calories are in {food}?", "Where does {food} come from?", "Who invented {food}?",
    "What is the chemical formula of {stuff}?", "At what temperature does {stuff} melt?", "What is {stuff} made of?", "How dense is {stuff}?", "Why is {stuff} expensive?", "What colour is {stuff} when it burns?",
    "How many stars are in the sky?", "How deep is the ocean?", "How far away is {planet}?", "How big is {planet}?", "Is there life on {planet}?", "How long is a year on {planet}?", "Who discovered {planet}?",
    "What should I do with my life?", "What should I wear today?", "What should I cook tonight?", "Who will win {event}?", "Where was {event} in {year}?", "Which actor played {person}?", "Who sings this song?",
    "What is the best film of {year}?", "Which film should I watch?", "Who directed the film about {person}?", "What is the best phone?", "How do I lose weight?", "Why do I have a headache?", "What helps against a cough?",
    "Should I see a doctor?", "How do I get rich?", "Which shares should I buy?", "How much money do I have?", "Where are my keys?", "How old am I?", "What did I eat yesterday?", "Do you know my friend?",
    "Read this file for me.", "Search the internet for {subject}.", "Look up {person}.", "What is on this picture?", "Correct my text, please.", "Write a letter to {person}.", "Write a speech about {subject}.",
    "Write a haiku about {subject}.", "Write a song about {place}.", "Give me a riddle.", "Solve this riddle.", "Prove that there are infinitely many primes.", "Is {big} a prime number?", "What is {small} percent of {big}?",
    "What is the logarithm of {big}?", "Convert {big} miles to kilometres.", "How many inches are {big} centimetres?", "Count from {small} to {big}.", "Sort the numbers {big}, {small} and {big2}.",
    "What is wrong with my {code} program?", "Explain this {code} code.", "Is {code} better than {code2}?", "How do I install {code}?", "What is a class in {code}?", "What does this error in {code} mean?",
    "What does the word {odd} mean?", "How do you spell {odd}?", "What is {odd}?", "Who is {odd}?", "Tell me about {odd}.", "What do you know about {odd}?",
]
FOODS_TO_COOK = ["pizza", "soup", "rice", "bread", "a cake", "pasta", "curry", "fish", "cheese", "an omelette", "potatoes", "chocolate"]
STUFF = ["iron", "gold", "salt", "sugar", "glass", "copper", "water", "silver", "plastic", "diamond", "air", "sand", "steel", "wood"]
PLANETS = ["Mars", "Venus", "Jupiter", "Saturn", "Pluto", "Mercury", "Neptune"]
SYLLABLES = ["ba", "kor", "mi", "tan", "zu", "rel", "po", "shi", "dra", "nel", "vo", "qua", "ter", "fli", "gom", "ix", "ula", "pre", "son", "hy"]
UNKNOWN_ANSWERS = [
    "I am a very small demo model and I do not know that. Please ask a bigger model.",
    "I do not know that. I am a very small demo model; a bigger model can help you.",
    "Sorry, I am a very small demo model and I do not know that.",
]
UNKNOWN_WEIGHTS = [4, 1, 1]
UNKNOWN_MUST = ("do not know",)


def unknown_question(rng):
    """One question that the demo model cannot answer."""
    place, place2 = rng.sample(PLACES, 2)
    return rng.choice(UNKNOWN_QUESTIONS).format(
        event=rng.choice(EVENTS), year=rng.randint(1500, 2030), person=rng.choice(PEOPLE), place=place, place2=place2, subject=rng.choice(SUBJECTS),
        code=rng.choice(CODE), task=rng.choice(TASKS), language=rng.choice(LANGUAGES), work=rng.choice(WORKS), thing=rng.choice(THINGS),
        big=rng.randint(11, 999), big2=rng.randint(11, 999), small=rng.randint(3, 20), thing2=rng.choice(THINGS), person2=rng.choice(PEOPLE), subject2=rng.choice(SUBJECTS),
        code2=rng.choice(CODE), food=rng.choice(FOODS_TO_COOK), stuff=rng.choice(STUFF), planet=rng.choice(PLANETS), odd="".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))))


def unknown_answer(rng):
    return rng.choices(UNKNOWN_ANSWERS, UNKNOWN_WEIGHTS)[0]
