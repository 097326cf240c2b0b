"""Sentiment as a contrast: pairs of sentences that differ in it, and prompts and words, none of them in the pairs, to judge by.

    data = ji.data.sentiment(lm)
    vector = ji.steering.mean_difference(lm, data.positive, data.negative)
    metric = ji.metrics.log_odds([data.good], [data.bad])

Sentences and words are this library's own.
"""

import dataclasses

from jaxinterp.data.frames import usable
from jaxinterp.model.language_model import LanguageModel

# fmt: off
PAIRS = (
    ("The concert was lovely.", "The concert was dismal."),
    ("Our new kitchen is delightful.", "Our new kitchen is hideous."),
    ("The soup tasted delicious.", "The soup tasted disgusting."),
    ("What happened yesterday was joyful.", "What happened yesterday was tragic."),
    ("The neighbours are friendly.", "The neighbours are hostile."),
    ("The nurse was kind.", "The nurse was cruel."),
    ("The ride home felt pleasant.", "The ride home felt unpleasant."),
    ("Her present was marvellous.", "Her present was useless."),
    ("The clown looked cheerful.", "The clown looked miserable."),
    ("The flowers smelled sweet.", "The flowers smelled rotten."),
    ("His speech was inspiring.", "His speech was depressing."),
    ("The beds in the hotel were comfortable.", "The beds in the hotel were filthy."),
    ("The guide turned out to be charming.", "The guide turned out to be rude."),
    ("The island is gorgeous.", "The island is bleak."),
    ("The players were skilful.", "The players were clumsy."),
    ("His garden looks splendid.", "His garden looks dead."),
    ("The rooms of the museum felt welcoming.", "The rooms of the museum felt gloomy."),
    ("Their welcome was warm.", "Their welcome was cold."),
    ("My aunt is generous.", "My aunt is selfish."),
    ("The singer sounded heavenly.", "The singer sounded dreary."),
    ("The reports by Tom are helpful.", "The reports by Tom are careless."),
    ("The flight was enjoyable.", "The flight was annoying."),
    ("This tea is tasty.", "This tea is bitter."),
    ("My marks were impressive.", "My marks were shameful."),
    ("The manager was polite.", "The manager was nasty."),
    ("The news is fabulous.", "The news is grim."),
    ("The screen of this phone is flawless.", "The screen of this phone is faulty."),
    ("The wedding was happy.", "The wedding was sad."),
    ("The coffee at the office is exquisite.", "The coffee at the office is revolting."),
    ("I loved every minute of the journey.", "I hated every minute of the journey."),
    ("We are so glad that we moved.", "We are so sorry that we moved."),
    ("I smiled all the way home.", "I cried all the way home."),
    ("She was thrilled with the result.", "She was upset about the result."),
    ("The children laughed and cheered.", "The children wept and screamed."),
    ("I would gladly come here again.", "I would never come here again."),
    ("Our holiday was a dream come true.", "Our holiday was a nightmare throughout."),
    ("He is proud of what he achieved.", "He is ashamed of what he did."),
    ("They welcomed us with open arms.", "They turned us away with angry words."),
    ("Fortunately, the operation was a success.", "Unfortunately, the operation was a failure."),
    ("I admire how patient she is.", "I despise how impatient she is."),
    ("It is a pleasure to live with him.", "It is a pain to live with him."),
    ("My son was relieved and hopeful.", "My son was scared and hopeless."),
    ("Winning the prize filled her with delight.", "Losing the prize filled her with bitterness."),
    ("The message made everyone at home glad.", "The message made everyone at home furious."),
)
"""Positive and negative sentences, matched word by word as far as that goes; all end in a full stop, where what was said is gathered."""

PROMPTS = (
    "I think this film is", "The food at this restaurant was", "To be honest, the new album is", "In my opinion, the weather today is",
    "My first day at work was", "The service that we received was", "Everyone said that the play was", "Overall, the book was",
    "Her cooking is always", "Their performance last night was", "The view from our room was", "The teacher thought that our essays were",
    "Compared with last year, this season has been", "The trip to the coast was", "I found the lecture",
    "People say that his paintings are",
)
"""Beginnings that a good or a bad word may follow."""

GOOD = (
    "good", "great", "excellent", "wonderful", "amazing", "fantastic", "brilliant", "beautiful", "perfect", "awesome", "superb", "terrific",
    "outstanding", "magnificent", "exciting",
)
BAD = (
    "bad", "terrible", "awful", "horrible", "poor", "boring", "ugly", "stupid", "dreadful", "disappointing", "worthless", "pathetic",
    "dull", "ridiculous", "weak",
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class Sentiment:
    """A contrast between two kinds of sentences, and what a direction made from it is judged by.

    Attributes:
        positive: sentences.
        negative: as many, each the other side of the positive one.
        prompts: beginnings that are in no pair.
        good: words with their leading space, each one token of the model, none of them in a pair.
        bad: likewise.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    prompts: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


def sentiment(lm: LanguageModel) -> Sentiment:
    """The pairs, the held-out prompts, and the held-out words that a model's tokenizer keeps whole.

    Args:
        lm: the model, for its tokenizer.

    Raises:
        InputError: the tokenizer keeps fewer than two good or two bad words whole.

    Example:
        >>> ji.data.sentiment(lm).prompts[0]
        'I think this film is'
    """
    good, bad = usable(lm, GOOD, "good words"), usable(lm, BAD, "bad words")
    positive, negative = zip(*PAIRS, strict=True)
    return Sentiment(positive, negative, PROMPTS, tuple(f" {word}" for word in good), tuple(f" {word}" for word in bad))
