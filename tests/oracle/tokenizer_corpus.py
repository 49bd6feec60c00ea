"""Text to train small vocabularies on, and the texts they are then asked to split. Written for this purpose."""

CORPUS = """\
The launcher looks at the machine before it starts the engine. It counts the cores, reads the quota and says why it chose them.
A ternary weight is minus one, zero or plus one. The scale belongs to the whole matrix and is kept as one number beside it.
When the server hears SIGTERM it stops taking requests, finishes what it can, and leaves within five seconds.
She said that it's fine, they're late, we've seen it, I'd go, you'll stay and he doesn't know what the others don't tell.
Once upon a time there was a small lamp that wanted to be the sun. Every evening it shone a little brighter than before.
Der kleine Rechner zählt seine Kerne und wählt danach die Zahl der Fäden. Größe, Straße, Übung, schön, über, für, natürlich.
Wer früh aufsteht, hört die Vögel singen; wer spät schläft, hört den Regen auf dem Dach und das Rauschen der Bäume.
Le petit serveur répond à toutes les questions, même à celles qu'on n'a pas posées. C'était déjà l'été, là-bas, près de la forêt.
El año que viene será mejor, dijo el niño; mañana también habrá pan y canción en la pequeña estación de montaña.
Маленький сервер отвечает на вопросы и считает слова. Каждое утро он просыпается раньше всех и смотрит на реку.
Ο μικρός υπολογιστής μετράει τους πυρήνες του και απαντάει στις ερωτήσεις κάθε μέρα και κάθε νύχτα.
小さな機械は毎朝早く起きて、川の水を見ています。質問に答えるのが仕事です。今日は天気がいいですね。
小机器每天早上看河水，然后回答问题。今天天气很好，我们一起去山上看太阳。你好，世界！
작은 기계는 매일 아침 강물을 보고 질문에 대답합니다. 오늘은 날씨가 좋습니다.
الآلة الصغيرة تجيب عن الأسئلة كل صباح وتنظر إلى النهر قبل شروق الشمس.
המכונה הקטנה עונה על שאלות בכל בוקר ומסתכלת על הנהר לפני הזריחה.
छोटी मशीन हर सुबह नदी को देखती है और सवालों के जवाब देती है।
เครื่องเล็กตอบคำถามทุกเช้าและมองดูแม่น้ำก่อนพระอาทิตย์ขึ้น
fn main() { let x: u32 = 42; for i in 0..x { println!("{i}"); } }
def add(a, b):\n    return a + b\n\nclass Counter:\n    def __init__(self):\n        self.n = 0\n
if (value != NULL && count >= 10) { return value->next; } else { i++; }
{"model": "bitnet", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 128, "stream": true}
In 2024, 1234567 parts were counted: 12, 345, 6789, 0.5, 3.14159, 1e-5, 100%, 10:30, 2026-11-23, 192.168.1.10:8081.
https://example.org/path?query=1&other=two#part and mail to someone@example.org or call +49 30 1234-5678.
Emoji are fun: 😀 😀 👍 👍🏽 🎉 ❤️ ❤️ 🚀 👩‍💻 🇩🇪 and so are arrows → ← ⇒ and signs € £ ¥ © ™ ½ ².
""".replace("\\n", "\n")

# Whole words that no sequence of merges builds: only a vocabulary with ignore_merges finds them.
UNMERGED = [" launcher", "Ternary", " quotas", "ĉefo", "🚀🚀", "202", " größer", "!!!!", "\n\n\n\n", "天気"]

CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
USER_DEFINED = ["<tool>", "<tool>_call"]

TEXTS = [
    "",
    " ",
    "  ",
    "        ",
    "\n",
    "\r\n",
    "\n\n\n",
    "\n\n\n\n",
    "\r\n\r\n\r\n",
    "\r\r\n\n\r",
    "\t",
    "\t\t\tindented\n\t\twith tabs \t mixed",
    "a",
    "Hello, world!",
    "Hello,  world !",
    " leading blank",
    "trailing blank ",
    "trailing blanks   ",
    "   three blanks in front",
    "two\n\nparagraphs\r\n\r\nand a CR LF",
    "line \nline  \n  line\n \n",
    "blanks   \n   around   \r\n   line ends",
    "The launcher looks at the machine. Ternary quotas are größer.",
    "it's they're we've I'd you'll I'm don't",
    "IT'S THEY'RE WE'VE I'D YOU'LL I'M DON'T",
    "It'S They'Re we'Ve 'tis 'Twas ''s ' s 's",
    "it’s they’re we’ve",
    "'sun 'remote 'velvet 'lllama",
    "0 1 12 123 1234 12345 123456 1234567",
    "2024-11-23T18:35:07Z and 3.14159e-10 or 0x1F600",
    "1,234,567.89 % and 50%50 a1b2c3 7zip x86_64",
    "١٢٣٤ ४५६ ①②③ Ⅳ ½ x² H₂O",
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n",
    "if (a != b && c >= 10) { return a->next; } // why?\n",
    "def f(x):\n\treturn x**2  # square\n\n\nprint(f(3))",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "{\"model\":\"bitnet\",\"stop\":[\"\\n\"],\"n\":-1}",
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "!!!! ???? .... ---- ==== #### ```` ~~~~ $$$$ ^^^^",
    "(a)[b]{c}<d>'e'\"f\"`g`",
    "...and so on... (etc.)\n...\n",
    "Größe über Straße, naïve café, señor, Ærø, İstanbul, ĉefo",
    "cafe\u0301 n\u0303 a\u0308\u0323 \u0301alone",
    "Маленький сервер ответил: «да»!",
    "Ο υπολογιστής; ναι.",
    "小さな機械は毎朝早く起きて、川を見ます。",
    "今天天气很好，我们去看太阳。你好，世界！",
    "天気 天気天気 機械learning日本語mix",
    "작은 기계는 대답합니다.",
    "الآلة الصغيرة تجيب ١٢٣ مرة، نعم؟",
    "המכונה עונה \u200fעל\u200e שאלות",
    "छोटी मशीन जवाब देती है।",
    "เครื่องเล็กตอบคำถามทุกเช้า",
    "😀😀 👍🏽 👩‍💻👩‍👩‍👧‍👦 🇩🇪🇯🇵 ❤️ 🚀🚀 🚀",
    "text😀text 😀text text😀 \n😀\n",
    "no\u00a0break\u00a0 \u00a0space \u00a0\u00a0",
    "thin\u2009space em\u2003space ideographic\u3000space line\u2028sep next\u0085line",
    "zero\u200bwidth\u200djoin\ufeffmark soft\u00adhyphen",
    "bell\u0007 escape\u001b[31m nul\u0000 del\u007f fs\u001c vt\u000b ff\u000c end",
    "replacement \ufffd private \ue000 noncharacter \uffff astral \U0001f9ff\U00020000\U0010fffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0" * 70,
    "-" * 70,
    " " * 70 + "x",
    "\n" * 33 + "x",
    "hahahahahahahahahaha lalalalalala",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism",
    "The end.<|eot_id|>",
    "<|begin_of_text|>User: Hi<|eot_id|>Assistant: ",
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|>\n",
    "<|eot_id|><|eot_id|> <|eot_id|>",
    "<|eot_id <|eot_id|> |eot_id|> <|unknown|> <|EOT_ID|>",
    "call <tool>now and <tool>_call now and < tool>",
    "<s></s><unk><0x0A> [INST] <|im_end|>",
]
