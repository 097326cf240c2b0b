"""Plain paragraphs on everyday subjects: texts to measure a model's loss on where none are given. They are this library's own."""

PARAGRAPHS: tuple[str, ...] = (
    "The market opens before sunrise. Farmers unload crates of cabbages, leeks and apples, and by seven the first customers are "
    "walking between the stalls with baskets on their arms. The baker at the corner sells out of rye bread within an hour.",
    "A bicycle has two wheels, a frame and a chain. When the rider pushes the pedals, the chain turns the rear wheel, and the "
    "bicycle moves forward. Gears make it easier to climb a hill, because the wheel then turns less for each turn of the pedals.",
    "My grandmother kept every letter that she ever received. They were tied in bundles with string, one for each year, and she "
    "could find any of them in a minute. After she died we read them aloud in the kitchen until it was dark.",
    "The committee met on Tuesday to discuss the new bridge. Two members wanted to wait until the cost was known, and three wanted "
    "to begin at once. In the end they agreed to ask an engineer for a second opinion before the summer.",
    "Rain forms when water vapour rises, cools and gathers into drops. The drops grow as they meet one another, and when they are "
    "heavy enough they fall. In cold air the same process makes snow, since the water freezes before it reaches the ground.",
    "To make a simple soup, cut two onions and fry them slowly in butter. Add four potatoes, a litre of water and a little salt, and "
    "let everything boil for twenty minutes. Mash it with a fork, and put some parsley on top before you serve it.",
    "The dog waited at the gate every afternoon. He knew the sound of the school bus, and when it turned into the street he stood up "
    "and wagged his tail. The children ran to him, dropped their bags on the grass and threw him a ball.",
    "In 1869 the railway reached the town, and within ten years the number of people living there had doubled. A mill was built "
    "beside the river, then a hospital and two schools. Much of what stands in the old centre today is from that time.",
    "If a function calls itself, it is said to be recursive. Each call works on a smaller part of the problem, and the last one "
    "returns an answer without calling anything. A program that never reaches that case runs until it has used up its memory.",
    "The doctor asked him how long his shoulder had hurt. He said that it began in the spring, after he had painted the ceiling, and "
    "that it was worse at night. She told him to rest it, to keep it warm and to come back in three weeks.",
    "Whales are mammals, although they live in the sea. They breathe air through a hole at the top of the head, feed their young with "
    "milk and keep a steady body temperature. The largest of them can weigh more than thirty elephants.",
    "Dear Ms. Kelly, thank you for your order of the third of May. Unfortunately the blue chairs are no longer in stock, and we expect "
    "the next delivery in about two weeks. Please let us know whether you would like to wait or to choose another colour.",
    "At night the harbour is almost silent. Ropes creak, a lamp swings above the ferry office, and now and then a gull cries out over "
    "the dark water. The fishermen come down at four, start their engines and leave one after the other.",
    "Prices rose by two percent last year, a little less than the year before. Food and rent became more expensive, while fuel and "
    "clothing cost about the same. Economists expect that wages will grow faster than prices in the coming months.",
    "Our team lost the first match and won the next four. The goalkeeper, who is only nineteen, saved a penalty in the last minute of "
    "the final, and the crowd sang her name until the lights were switched off. She said that she had simply guessed the right side.",
    "Gold is soft enough to be beaten into sheets thinner than paper. It does not rust, which is why coins and rings from ancient "
    "graves still shine. Most of the gold that has ever been found is kept in vaults or worn as jewellery.",
)  # fmt: skip
"""Sixteen paragraphs of about fifty tokens: stories, instructions, reports and letters."""
