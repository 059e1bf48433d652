"""Running text in several scripts: scored by the models, and the corpus of the small tokenizers."""

ENGLISH = [
    "The lighthouse keeper wrote one line in the log every evening, and for eleven years the line was the same: "
    "wind from the west, sea calm, lamp lit at dusk. On the first night of the twelfth year he stopped with the pen "
    "above the paper, because far out, where no ship had any business to be, a second lamp was answering his own.",
    "A good recipe for bread needs only four things: flour, water, salt and time. Mix 500 g of flour with 350 g of "
    "water, wait half an hour, then add 10 g of salt and a little yeast. Fold the dough every thirty minutes for three "
    "hours. Bake it at 240 degrees until the crust is dark brown and the loaf sounds hollow when you knock on it.",
    "Length is not the same as depth. A long answer can repeat itself, wander, or promise what it never delivers; "
    "a short answer can leave the reader without the one example that would have made everything clear. When we ask a "
    "model to write more, we ask it to plan more, to remember more, and to keep its word over several pages.",
    "Dear Ms. O'Neill,\n\nThank you for your letter of 14 March 2021. We're sorry that the parcel hadn't arrived; it'll "
    "be sent again today, and you'll find the receipt (no. 77-4102-B) attached. If it isn't there by Friday, please call "
    "us on +44 20 7946 0018.\n\nYours sincerely,\nThe Post Room\n",
    "In 1869 the two halves of the railway met in the desert. Engineers had measured the distance as 1,776 miles; the "
    "workers, who had laid every rail by hand, said that it was longer than that. Both were right. Numbers measure the "
    "ground, and tired people measure the day: 10.5 hours, 3 breaks, 25% more stone than anybody had expected.",
    "# How to water a garden\n\n1. Water early in the morning.\n2. Water the soil, not the leaves.\n3. Do it seldom, but "
    "thoroughly.\n\n## Why\n\nRoots follow the water. If only the surface is wet, roots stay near the surface, and the "
    "first dry week kills them.\n\n* shade keeps the soil cool\n* mulch keeps it wet\n* patience keeps the gardener sane\n",
    "\"Who wrote this report?\" asked the minister. Nobody answered. \"Then who has read it?\" The room was quiet again, "
    "until the youngest secretary stood up and said, \"I have, sir. All nine hundred pages. It is a wonderful report, and "
    "the only thing wrong with it is the conclusion, which was written before the rest.\"",
    "The heart pumps about five litres of blood a minute while we rest, and as much as twenty-five while we run. It does "
    "so without a plan: each cell listens to its neighbours, waits its turn, and passes the signal on. What looks like the "
    "work of a conductor is only the sum of very many small and punctual decisions.",
]

CHINESE = [
    "秋天的早晨，老人推开木门，院子里落满了银杏叶。他没有急着扫，而是搬来一把竹椅，坐在阳光里，听远处火车的汽笛声。"
    "六十年前，他就是坐着那样的火车来到这座小城的，口袋里只有三块钱和一封介绍信。",
    "写一篇长文章，首先要有清楚的提纲。第一部分说明问题，第二部分分析原因，第三部分提出办法，最后总结全文。"
    "每个部分都要有具体的例子，不能只说空话；前后的观点也应当一致，不要自相矛盾。",
    "人工智能的发展大约经历了三个阶段：1956年到1974年是第一次高潮，20世纪80年代是专家系统的时代，2012年以后则是深度学习的时代。"
    "今天的语言模型可以写诗、翻译、编程，但是要它写出一万字的连贯文章，仍然不容易。",
    "“你为什么不早点告诉我？”她问。他低下头，过了很久才说：“因为我怕你会留下来。”窗外的雨越下越大，谁也没有再说话……",
]

CODE = [
    "def fibonacci(n: int) -> list[int]:\n    \"\"\"Return the first n Fibonacci numbers.\"\"\"\n    numbers = [0, 1]\n"
    "    while len(numbers) < n:\n        numbers.append(numbers[-1] + numbers[-2])\n    return numbers[:n]\n\n\n"
    "if __name__ == \"__main__\":\n    print(fibonacci(20))  # 0 1 1 2 3 5 8 ...\n",
    "#include <algorithm>\n#include <vector>\n\ntemplate <typename T>\nT median(std::vector<T> values) {\n\tauto middle = "
    "values.begin() + values.size() / 2;\n\tstd::nth_element(values.begin(), middle, values.end());\n\treturn *middle;\n}\n",
    "SELECT language, COUNT(*) AS rows, AVG(words) AS mean_words\n  FROM responses\n WHERE accepted = 1 AND words >= 2000\n"
    " GROUP BY language\n ORDER BY mean_words DESC;\n",
    "{\"name\": \"sample\", \"values\": [1, 2.5, -3e-7], \"nested\": {\"ok\": true, \"none\": null}}\r\n<p class=\"a\">x &amp; y"
    "</p>\r\nfor i in $(seq 1 10); do echo \"$i\" >> log.txt; done\r\n",
]

EMOJI = [
    "Release day! 🎉🎉 The tests are green ✅, the coffee is hot ☕️, and the family 👨‍👩‍👧‍👦 says hi 👋🏽. See you in 🇨🇭 or 🇯🇵? "
    "🤖 -> 🧠 = ❤️‍🔥",
    "Naïve café déjà vu: façade, Zürich, smörgåsbord, žluťoučký kůň, cafe\u0301 and nai\u0308ve; Привет, мир! Γειά σου Κόσμε. "
    "مرحبا بالعالم ١٢٣ สวัสดีชาวโลก שלום עולם नमस्ते दुनिया 안녕하세요 こんにちは世界 ½ ² Ⅷ ∑ → ≤ €",
]

ALL = ENGLISH + CHINESE + CODE + EMOJI
