"""English words that may stand for each other, and other ways to say a thing: lists of our own. (no torch)

We found no package of the Python index that is kept up and carries WordNet. Its sets of synonyms are of senses, too,
which a text does not name: a "great" week could become an "outstanding" or a "capital" one, and "sick of it" "ill of
it". So these lists hold words that have one sense in nearly all everyday texts (chats, films, goods), with their
inflected forms written out. No line adds, drops or turns a negation.
"""

# A line is words, or rows of forms in the same order: those left of > become those right of it, those around | each
# other. _ is a space.
SYNONYMS = """
buy buys buying bought > purchase purchases purchasing purchased
begin begins beginning began > start starts starting started
build builds building built > construct constructs constructing constructed
choose chooses choosing chose > pick picks picking picked
select selects selecting selected > choose chooses choosing chose
happen happens happening happened | occur occurs occurring occurred
allow allows allowing allowed > permit permits permitting permitted
receive receives receiving received > get gets getting got
replied > responded
repair repairs repairing repaired > fix fixes fixing fixed
assume assumes assuming assumed > suppose supposes supposing supposed
shout shouts shouting shouted | yell yells yelling yelled
crying cried > weeping wept
destroy destroys destroying destroyed > ruin ruins ruining ruined
obtain obtains obtaining obtained | acquire acquires acquiring acquired
attempt attempts > try tries
require requires required > need needs needed
wreck wrecks wrecking wrecked > destroy destroys destroying destroyed
adore adores adored > love loves loved
detest detests detested | loathe loathes loathed
annoy annoys annoying annoyed | irritate irritates irritating irritated
infuriate infuriates infuriating infuriated | enrage enrages enraging enraged
frighten frightens frightening frightened > scare scares scaring scared
scared > frightened
afraid_of > scared_of
terrify terrifies terrifying terrified > horrify horrifies horrifying horrified
surprised surprising surprisingly > astonished astonishing astonishingly
amaze amazes amazed | astonish astonishes astonished
astound astounds astounding astounded > amaze amazes amazing amazed
confuse confuses confusing confused | baffle baffles baffling baffled
puzzled puzzling > confused confusing
embarrassing > humiliating
admire admires admired > look_up_to looks_up_to looked_up_to
recommend recommends recommended > suggest suggests suggested
realize realizes realizing realized | realise realises realising realised
understand understands understood > get gets got
finish finishes finishing finished > complete completes completing completed
complain complains complaining complained > grumble grumbles grumbling grumbled
insulted insulting > offended offensive
deserve deserves deserved > merit merits merited
explain explains explaining explained > clarify clarifies clarifying clarified
provide provides providing provided > supply supplies supplying supplied
gather gathers gathering gathered | collect collects collecting collected
replace replaces replacing replaced > swap swaps swapping swapped
discover discovers discovering discovered > find finds finding found
mock mocks mocking mocked | ridicule ridicules ridiculing ridiculed
applaud applauds applauding applauded > praise praises praising praised
praised praising > commended commending
large larger largest > big bigger biggest
huge > enormous | gigantic | massive
enormous | gigantic
tiny > very_small
quick quicker quickest > fast faster fastest
quickly | rapidly | swiftly
clever cleverer cleverest | smart smarter smartest
intelligent > clever | smart
stupid > dumb | idiotic
dumb | idiotic
moron morons | idiot idiots
silly > foolish | daft
foolish > silly
happy > glad | joyful
glad | pleased
delighted | overjoyed
excited > thrilled
happiness > joy
joy > delight
sad sadder saddest > unhappy unhappier unhappiest
unhappy > sad
sadness | sorrow
grief > sorrow
miserable | wretched
heartbroken > devastated
heartbreaking > devastating
depressing > gloomy | dismal
depressed > miserable
lonely > lonesome
tragic > heartbreaking
angry angrier angriest > mad madder maddest
furious > enraged
anger > rage | fury
scary scarier scariest > frightening more_frightening most_frightening
creepy > spooky | eerie
spooky | eerie
terrified > petrified
nervous | anxious
worried > anxious | concerned
awful | terrible | dreadful
horrible > awful | terrible | dreadful
horrendous > horrible
disgusting | revolting
gross > disgusting
nasty > vile
pathetic > pitiful
ridiculous | absurd | ludicrous
crap > rubbish | garbage
garbage > rubbish | trash
bad > lousy
great > excellent | terrific | superb
excellent | superb | outstanding
awesome | amazing | fantastic
fantastic | wonderful | marvellous
brilliant > superb
terrific > great
incredible incredibly | unbelievable unbelievably
fabulous > fantastic | wonderful
lovely > delightful
delightful > lovely
gorgeous | stunning
beautiful beautifully > gorgeous gorgeously
pretty_good pretty_bad > quite_good quite_bad
pretty_much > more_or_less
ugly > hideous
delicious | tasty
yummy > tasty | delicious
funny funnier funniest > amusing more_amusing most_amusing
hilarious > hysterical
boring | dull | tedious
interesting > intriguing | fascinating
fascinating > intriguing | gripping
gripping > riveting
exciting > thrilling
charming > delightful | enchanting
engaging > absorbing
weird weirder weirdest > strange stranger strangest | odd odder oddest
strange stranger strangest > weird weirder weirdest
bizarre > weird | strange
crazy > insane | nuts
insane > crazy
brave braver bravest > courageous more_courageous most_courageous
friendly > amiable
useless > worthless
pointless | meaningless
rude > impolite | ill-mannered
polite > courteous
honestly | frankly
sincere > genuine | heartfelt
fake > phony | bogus
false > untrue
incorrect > wrong
mistake mistakes | error errors
easy easier easiest > simple simpler simplest
difficult > hard
tough tougher toughest > hard harder hardest
rich > wealthy
wealthy > rich
expensive > pricey | costly
cheap cheaper cheapest > inexpensive less_expensive least_expensive
famous > well-known
important > significant | crucial
crucial > vital | essential
essential | vital
necessary > essential
entire > whole
entirely | completely | totally
absolutely > totally | completely
extremely > exceedingly
really > truly
truly > really
very > really
basically > essentially
probably > most_likely
maybe | perhaps
definitely | certainly
obviously | clearly
apparently > seemingly
usually | normally
often | frequently
sometimes > at_times | now_and_then
immediately | instantly
suddenly > all_of_a_sudden
finally > at_last
eventually > in_the_end
currently > at_present | right_now
recently > lately
nearly | almost
approximately > roughly
exactly | precisely
mostly | mainly
fully > completely
constantly | continually
accidentally > by_accident
luckily | fortunately
unfortunately > sadly | regrettably
anyway > anyhow
movie movies | film films
car cars > automobile automobiles
kid kids > child children
guy guys > fellow fellows
mom | mum
mother > mum
dad > father
folks > people
buddy > pal | mate
friend friends > pal pals
doctor doctors > physician physicians
lawyer lawyers | attorney attorneys
cop cops > police_officer police_officers
salary > pay
cash > money
gift gifts > present presents
photo photos > picture pictures
pic pics > photo photos
tv | television
phone phones > telephone telephones
store stores > shop shops
sofa | couch
journey journeys > trip trips
vacation vacations > holiday holidays
plot > storyline
storyline > plot
actor actors > performer performers
audience > viewers
the_ending > the_conclusion
opinion opinions > view views
advice > guidance
opportunity opportunities > chance chances
problem problems > issue issues
issue issues > problem problems
outcome outcomes > result results
talent > gift
skill skills > ability abilities
sickness | illness
exhausted > worn_out
tired > weary
hungry > famished
thankful | grateful
jealous | envious
curious > inquisitive
confident > self-assured
comfy > cosy
cute cuter cutest > adorable more_adorable most_adorable
adorable > cute
dangerous > hazardous
dirty > filthy
filthy > dirty
noisy > loud
strong stronger strongest > powerful more_powerful most_powerful
weak weaker weakest > feeble feebler feeblest
shocking > appalling
shocked | stunned
mediocre > so-so
predictable > foreseeable
i_love we_love > i_adore we_adore
i_hate we_hate > i_detest we_detest | i_loathe we_loathe
i_think > i_believe
i_guess | i_suppose
so_much_fun > a_lot_of_fun
a_lot_of | lots_of | plenty_of
for_example | for_instance
in_my_opinion > if_you_ask_me
right_away | straight_away
congratulations | congrats
thanks_for > thank_you_for
many_thanks > thanks_a_lot
thank_god > thank_goodness
good_luck > best_of_luck
well_done > good_job
happy_birthday > many_happy_returns
"""
# in these the words of the lists above mean something else, and stay
IDIOMS = """
very_much cell_phone cell_phones a_maybe many_happy happy_new_year happy_christmas happy_cake_day happy_holidays
happy_ending happy_to a_great_deal great_grandfather great_grandmother great_britain great_depression an_awful_lot
feel_bad feels_bad feeling_bad felt_bad too_bad my_bad not_bad so_bad that_bad go_bad bad_ass bad_guy bad_guys
take_it_easy go_easy easy_going i_kid i_love_to i_hate_to many_thanks_for the_very odd_one not_really oh_really
strong_point as_a_whole movie_star mother_in_law mother_nature mother_fucker mother_of father_in_law boy_friend
get_rid gross_income rich_in tough_luck well_done_steak i_think_so i_guess_so i_think_not
"""

# Short forms and long ones. The long become short at the beginning of a sentence alone: "as it is now" stays.
CONTRACTIONS = """
i'm|i am
you're|you are
we're|we are
they're|they are
i'll|i will
you'll|you will
he'll|he will
she'll|she will
we'll|we will
they'll|they will
"""
# short forms with one way of writing them out; 's is taken for "is" where no participle follows ("it's been")
SHORT_FORMS = """
i've|i have
you've|you have
we've|we have
they've|they have
it'll|it will
it's|it is
that's|that is
he's|he is
she's|she is
there's|there is
here's|here is
what's|what is
who's|who is
where's|where is
"""
# not written out in questions: "don't you think"
NEGATED = """
don't|do not
doesn't|does not
didn't|did not
can't|cannot
won't|will not
isn't|is not
aren't|are not
wasn't|was not
weren't|were not
haven't|have not
hasn't|has not
hadn't|had not
couldn't|could not
wouldn't|would not
shouldn't|should not
"""
# one way only
WORDINGS = """
gonna|going to
wanna|want to
kinda|kind of
sorta|sort of
gimme|give me
lemme|let me
dunno|do not know
let's|let us
because of|due to
even though|although
although|even though
in order to|to
right now|at the moment
these days|nowadays
nowadays|these days
several|a few
each other|one another
one another|each other
instead of|rather than
in spite of|despite
despite|in spite of
has to|needs to
have to|need to
had to|needed to
would have been|would've been
could have been|could've been
should have been|should've been
until|till
every day|each day
every time|each time
everyone|everybody
everybody|everyone
someone|somebody
somebody|someone
anyone|anybody
anybody|anyone
as long as|so long as
"""
