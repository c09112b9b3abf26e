"""Two cases of ours, to show what a model writes and to compare two models by. (no torch)"""

from data.summaries.cases import Case

DEMO_CASES = (
    Case(
        "demo-en",
        (
            "Ms K., 29, works in the dispatch office of a bakery. For four months she has slept badly and checked the "
            "orders of the day three or four times before she can leave.",
        ),
        (
            "In the first session she told how a wrong order in spring cost the shop a wedding customer. Nobody blamed "
            "her, but since then she has felt that one more mistake would be the end of her job.",
            "We wrote down what she expects to happen if she checks once only, and how likely she thinks it is. She "
            "named 80 percent.",
            "For two weeks she checked twice, then once, and noted each evening what had really gone wrong: two "
            "labels, both found the same hour.",
            "In the fifth session she slept through most nights. She said that she still thinks of the wedding cake, "
            "but as something that happened and not as something that is about to happen.",
        ),
    ),
    Case(
        "demo-zh",
        ("来访者李某，男，21岁，大三学生。近三个月上课时担心自己脸红，逐渐不敢坐在前排，也不敢回答问题。",),
        (
            "第一次咨询时，他提到一次课堂发言中有同学笑了，从那以后他一开口就注意自己的脸。",
            "咨询师请他记录每次脸红时别人的实际反应，一周里九次，没有一次有人说起。",
            "随后练习先把注意力放在要说的话上，并从小组里发言开始，逐步到全班。",
            "第六次咨询时，他能在课上主动提问，认为脸红仍会出现，但不再决定他做什么。",
        ),
    ),
)
