# ruff: noqa: E501
"""Write recipes/data/instructions.jsonl: the seed tasks of the recipes that make new instructions.

    python tools/make_instruction_seeds.py             writes the file
    python tools/make_instruction_seeds.py --check     writes nothing; exit code 1 where it differs

48 tasks with an input where one is needed and an answer, written for this project and under its licence. Columns:

    instruction, input, output    the task
    prompt, response              the same for training and scoring: instruction and input together; the output
    classification                whether a label is chosen
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TARGET = Path(__file__).parents[1] / "recipes" / "data" / "instructions.jsonl"

# instruction | input | output | label?
TASKS = """
Name the capital of the country.|Norway|The capital of Norway is Oslo.|
Put the words into alphabetical order.|river, apple, stone, cloud|apple, cloud, river, stone|
Say whether the sentence is a question or a statement.|The train leaves at nine.|statement|yes
Rewrite the sentence in the past tense.|She walks to school and reads a book.|She walked to school and read a book.|
Explain in two sentences why leaves are green.||Leaves hold chlorophyll, which absorbs red and blue light for photosynthesis. It reflects green light, and that is what we see.|
Write a polite e-mail of three sentences that asks a shop when a parcel will arrive.||Hello, I ordered a lamp from you last week and have not received it yet. Could you please tell me when the parcel will arrive? Thank you very much for your help.|
Find the odd one out.|carrot, potato, hammer, onion|hammer|yes
Count the vowels in the word.|education|The word has five vowels: e, u, a, i and o.|
Give three tips for falling asleep.||Go to bed at the same time each day. Keep the room dark and cool. Put screens away an hour before.|
Is the review positive or negative?|The soup was cold and the waiter forgot our drinks.|negative|yes
Translate the English word into Spanish.|house|casa|
Turn the list into one sentence.|eggs, milk, bread|We need eggs, milk and bread.|
What is the opposite of the word?|generous|stingy|
Write a short poem of two lines about snow.||The snow lies soft on roof and tree,|and all the street is white and free.
Convert the temperature from Celsius to Fahrenheit.|25|25 degrees Celsius are 77 degrees Fahrenheit.|
Summarise the text in one sentence.|Bees fly from flower to flower to collect nectar. On the way they carry pollen along, and so the plants can make seeds.|While bees collect nectar they carry pollen between flowers, which lets plants make seeds.|
Decide whether the animal is a mammal, a bird or a fish.|dolphin|mammal|yes
Correct the spelling mistakes.|I recieved you're letter yesturday.|I received your letter yesterday.|
How many minutes are there in three and a half hours?||There are 210 minutes in three and a half hours.|
Suggest a title for the story.|A boy finds an old map in the attic and follows it to a hidden lake.|The Lake at the End of the Map|
Explain the difference between weather and climate.||Weather is what the air does today or this week. Climate is what it does on average over many years.|
List four things to take along on a hike.||Take water, a map, a rain jacket and something to eat.|
Does the first sentence follow from the second? Answer yes or no.|First: Someone is outside. Second: A woman is walking in the park.|yes|yes
Write the number in words.|418|four hundred and eighteen|
Give a synonym for the word.|quick|fast|
Describe how to boil an egg.||Bring water to a boil, put the egg in, wait seven to nine minutes, and cool the egg under cold water.|
Make the sentence friendlier.|Send me the report now.|Could you please send me the report when you have a moment?|
Which of the two numbers is larger?|0.45 or 0.405|0.45 is larger.|
Write one sentence that uses all the words.|moon, boat, silent|The silent boat drifted under the moon.|
Say what language the sentence is written in.|Ich habe heute keine Zeit.|German|yes
Explain to a child what a library is for.||A library is a house full of books. You can choose some, take them home, read them and bring them back.|
Work out the price after the discount.|A coat costs 80 dollars and is reduced by 25 percent.|The coat costs 60 dollars after the discount.|
Name two advantages and one drawback of riding a bicycle to work.||It keeps you fit and costs little. In bad weather it is less pleasant.|
Extract the names of persons.|On Monday Maria met Doctor Ahmed and her brother Tom at the station.|Maria, Ahmed, Tom|
Finish the analogy.|Hand is to glove as foot is to|sock|
Classify the message as spam or not spam.|You have won a free cruise, click here within 10 minutes!|spam|yes
Write a question to which the sentence is the answer.|It takes about eight minutes for sunlight to reach the Earth.|How long does sunlight take to reach the Earth?|
Shorten the sentence to at most six words.|Due to the heavy rain, the match that was planned for Sunday had to be called off.|Sunday's match was cancelled for rain.|
Give an example of a renewable source of energy and say why it is renewable.||Wind power is renewable, because wind keeps blowing however much of it we use.|
Sort the events from the earliest to the latest.|lunch, sunrise, midnight snack, breakfast|sunrise, breakfast, lunch, midnight snack|
Explain what a deadline is.||A deadline is the latest time at which something has to be finished.|
Is the word a noun, a verb or an adjective?|beautiful|adjective|yes
Write a reminder to water the plants.||Please remember to water the plants this evening, above all the fern by the window.|
What comes next in the series?|2, 4, 8, 16|32|
Tell what the proverb means.|Many hands make light work.|When many people help, a task becomes easy.|
Replace the adverb with a stronger verb.|He ran quickly to the door.|He dashed to the door.|
State whether the claim is true or false.|A triangle has four sides.|false|yes
Plan a day in a city for a visitor who likes art.||Visit the art museum in the morning, have lunch nearby, see a small gallery in the afternoon and end with a walk past the murals of the old town.|
"""


def rows() -> list[dict[str, object]]:
    """The tasks as rows."""
    found = []
    for line in TASKS.strip().splitlines():
        instruction, given, output, label = line.split("|")
        if label not in ("", "yes"):  # a poem has its second line behind the bar
            output, label = f"{output}\n{label}", ""
        found.append(
            {
                "instruction": instruction,
                "input": given,
                "output": output,
                "prompt": f"{instruction}\n\n{given}" if given else instruction,
                "response": output,
                "classification": label == "yes",
            }
        )
    return found


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the file differs")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    if parser.parse_args().check:
        same = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        sys.stdout.write("the file is what this script writes\n" if same else f"{TARGET} differs\n")
        return 0 if same else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
