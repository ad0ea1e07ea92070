"""Audits of planted judges: every bias is found, in sign and size, and none where there is none."""

import json
from functools import cache

import pytest

from dataset_builder.judges import ReferenceJudge
from dataset_builder.judges.injections import INJECTIONS
from dataset_builder.stages import ShardStore
from eval.audit import Case, audit, audit_markdown, audit_summary
from eval.audit.asking import Screen
from eval.audit.findings import Values, mean_of
from eval.audit.report import FEWEST_VIDEOS, SMALLEST_MODEL, not_measured
from eval.audit.run import TITLES
from eval.audit.wording import DOSES, STYLES, padded, words_added
from eval.stats import student_quantile, unanimous_width
from tests.eval import planted_judges as planted

FEW = tuple(INJECTIONS[::9])
FAMILY = 60  # intervals looked at in this file; each may miss with a chance of 5 % / 60


@cache
def cases():
    return planted.planted_cases(40)


def audited(judge, **options):
    options = {"own": ["kin"], "injections": FEW, "pair_judge": planted.PairHonest(), "draws": 2000} | options
    return audit(judge, cases(), **options)


def found(record, probe, name):
    return next(one for one in record["findings"] if (one["probe"], one["name"]) == (probe, name))


def clear(record):
    return {f"{one['probe']}.{one['name']}" for one in record["findings"] if one["clear"]}


def covers(one, value):
    """Whether a planted value lies in the interval, widened for all intervals of this file."""
    estimate = one["estimate"]
    wider = student_quantile(estimate["clusters"] - 1, 1 - 0.05 / FAMILY) * estimate["se"]
    return min(estimate["low"], estimate["mean"] - wider) <= value <= max(estimate["high"], estimate["mean"] + wider)


def test_an_honest_judge_shows_no_error_and_no_bias():
    record = audited(planted.Honest(), blind=planted.FrameBlind())
    assert set(record["not_measured"]) == {"pairs.first_among_flips"}  # there are no flips to share out
    assert {one["probe"] for one in record["findings"]} == set(TITLES)
    assert clear(record) == set() and record["unjudged"] == 0
    for one in record["findings"]:
        if one["kind"] in ("bias", "rate"):
            assert one["estimate"]["mean"] == 0, one
        assert (one["p_holm"] is None) == (one["kind"] != "bias")
    for name in ("false_negative", "false_positive"):
        assert found(record, "errors", name)["estimate"]["mean"] == 0
        assert 0 < found(record, "errors", name)["estimate"]["high"] < 0.1  # none of 40 videos is not "never"
    assert found(record, "errors", "accuracy")["estimate"]["mean"] == 1
    assert found(record, "other_video", "same")["estimate"]["mean"] == 0  # it follows the video
    assert found(record, "other_video", "effect")["estimate"]["mean"] == 1
    assert found(record, "blank", "accuracy")["estimate"]["mean"] == 0.5
    assert found(record, "no_frames", "accuracy")["estimate"]["mean"] == 1  # the planted blind one reads references
    assert found(record, "pairs", "accuracy")["estimate"]["mean"] == 1


def test_error_rates_are_recovered_and_wording_is_not_blamed_for_them():
    for jitter in (0, 1):
        record = audited(planted.Noisy(seed=3, fn=0.15, fp=0.3, jitter=jitter))
        assert covers(found(record, "errors", "false_negative"), 0.15)
        assert covers(found(record, "errors", "false_positive"), 0.3)
        assert covers(found(record, "errors", "accuracy"), 1 - (0.15 + 0.3) / 2)
        assert clear(record) == set()
    assert found(record, "length", "padded_wrong")["estimate"]["se"] > 0  # jitter moves verdicts, only not one way


def test_love_of_length_is_recovered_with_its_slope():
    record = audited(planted.LengthLoving(seed=1, base=0.05, slope=0.012))
    added = [len(planted.words(padded("teal", dose))) - 1 for dose in DOSES]
    one = found(record, "length", "padded_wrong")
    assert covers(one, 0.012 * added[-1]) and one["clear"] and one["estimate"]["low"] > 0
    per_ten = 0.012 * 10 * added[-1] / words_added(DOSES[-1])  # articles are no words to this judge
    assert covers(found(record, "length", "slope_wrong"), per_ten)
    assert found(record, "length", "padded_right")["estimate"]["mean"] == 0
    assert clear(record) == {"length.padded_wrong", "length.padded_score"}  # and no tone, though tones have more words


def test_love_of_style_is_recovered_for_each_style_alone():
    record = audited(planted.StyleLoving(seed=2, bold=0.5, doubt=0.4))
    assert covers(found(record, "style", "bold_wrong"), 0.5) and covers(found(record, "style", "hedged_right"), -0.4)
    assert covers(found(record, "style", "bold_score"), 0.25) and covers(found(record, "style", "hedged_score"), -0.2)
    assert clear(record) == {f"style.{name}" for name in ("bold_wrong", "bold_score", "hedged_right", "hedged_score")}


def test_gullibility_is_recovered():
    record = audited(planted.Gullible(rate=1))
    for name in ("accepted_wrong", "score_wrong", "raised"):
        assert found(record, "injections", name)["estimate"]["mean"] == 1
    assert clear(record) == {"injections.accepted_wrong", "injections.score_wrong"}
    assert found(record, "injections", "score_wrong")["estimate"]["clusters"] == 20
    assert record["injections"]["compared"] == 20 * len(FEW)
    half = audited(planted.Gullible(seed=4, rate=0.5), injection_cases=40)
    assert covers(found(half, "injections", "accepted_wrong"), 0.5)


def test_self_preference_is_recovered():
    record = audited(planted.SelfPreferring(seed=5, rate=0.35))
    assert covers(found(record, "self_preference", "wrong_accepted"), 0.35)
    assert found(record, "self_preference", "right_accepted")["estimate"]["mean"] == 0
    assert clear(record) == {"self_preference.wrong_accepted", "self_preference.wrong_score"}
    assert not clear(audited(planted.SelfPreferring(seed=5, rate=0.35), probes=["errors", "length"]))


def test_blindness_is_recovered():
    record = audited(planted.FrameBlind())
    assert found(record, "other_video", "same")["estimate"]["mean"] == 1
    assert found(record, "other_video", "effect")["estimate"]["mean"] == 0
    assert found(record, "blank", "effect")["estimate"]["mean"] == 0
    assert found(record, "frames", "gain")["estimate"]["mean"] == 0
    assert "do not follow the video" in audit_markdown(record)
    assert "do not follow the video" not in audit_markdown(audited(planted.Honest()))


def test_the_number_of_frames_that_a_judge_needs_is_recovered():
    record = audited(planted.ShortSighted(frames=4), probes=["frames"])
    curve = {n: found(record, "frames", f"accuracy_{n}")["estimate"]["mean"] for n in (1, 2, 4, 8)}
    assert curve == {1: 0.5, 2: 0.5, 4: 1.0, 8: 1.0}
    assert found(record, "frames", "gain")["estimate"]["mean"] == 0.5


def test_fewer_frames_are_a_shorter_video_and_one_is_a_still():
    screen = Screen(cases(), 8)
    for count in (1, 2, 4):
        shown = screen.frames(0, f"frames-{count}")
        assert len(shown) == shown.total == len(shown.array) == len(shown.timestamps) == max(count, 2)
    still = screen.frames(0, "frames-1")
    assert still.indices == [3, 3] and (still.array[0] == still.array[1]).all()
    assert screen.frames(0, "blank").array.sum() == 0 and screen.frames(0, "own").array.sum() > 0
    assert (screen.frames(0, "other").array != screen.frames(0, "own").array).any()


def test_moods_and_batches_are_recovered():
    record = audited(planted.Moody(seed=6, rate=0.2), probes=["retest"])
    assert covers(found(record, "retest", "changed"), 0.2)
    assert "An ideal judge would have 0" in audit_markdown(record)
    record = audited(planted.OrderBound(), probes=["order", "retest"])
    assert found(record, "order", "changed")["estimate"]["mean"] > 0


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_love_of_the_first_place_is_recovered(rate):
    record = audited(planted.Honest(), pair_judge=planted.PositionLoving(seed=7, rate=rate), probes=["pairs"])
    assert covers(found(record, "pairs", "flips"), rate) and covers(found(record, "pairs", "position"), rate)
    assert found(record, "pairs", "first_among_flips")["estimate"]["mean"] == 1
    assert covers(found(record, "pairs", "accuracy"), 1 - rate / 2)
    assert clear(record) == {"pairs.position"}
    if rate == 1:
        assert found(record, "pairs", "flips")["estimate"]["mean"] == 1


def test_what_cannot_be_measured_says_why_and_is_never_zero():
    record = audit(ReferenceJudge(), cases(), injections=FEW, draws=500)
    why = record["not_measured"]
    for probe in ("frames", "other_video", "blank", "no_frames"):
        assert why[probe] == "the judge does not look at the video"
    assert "--pair-judge" in why["pairs"] and "--own" in why["self_preference"]
    measured = {one["probe"] for one in record["findings"]}
    assert measured | set(why) == set(TITLES) and not measured & set(why)
    table = audit_markdown(record)
    assert table.count("not measured: the judge does not look at the video") == 4
    # An answer in other words is no match for it: that is a bias too, and a large one.
    assert found(record, "length", "padded_right")["estimate"]["mean"] == -1

    bare = [Case(**{**vars(case), "responses": (), "other_id": None}) for case in cases()[:4]]
    why = audit(planted.Honest(), bare, own=["kin"], injections=FEW, draws=500)["not_measured"]
    assert why["self_preference"] == "the set holds no answers of known models"
    assert why["other_video"] == "the set holds no other video to show"
    assert "'vqa' and 'visual'" in why["no_frames"]
    one_video = audit(planted.Honest(), cases()[:2], probes=["errors"])
    assert "an interval needs two" in one_video["not_measured"]["errors"] and one_video["findings"] == []
    assert "it was not asked for" in one_video["not_measured"]["style"]


def test_an_endpoint_is_not_asked_what_its_cache_would_answer():
    class Served(planted.Honest):
        is_endpoint = True
        model = type("M", (), {"config": type("C", (), {"concurrency": 4})})

    why = audited(Served(), probes=["retest", "order"])["not_measured"]
    assert "a call of its own" in why["order"] and "cache" in why["retest"]
    assert found(audited(Served(), again=Served(), probes=["retest"]), "retest", "changed")["estimate"]["mean"] == 0


def test_failures_are_counted_left_out_and_said():
    record = audited(planted.Failing(), probes=["errors", "length"])
    assert record["unjudged"] == 2 * len(cases()) and record["failures"] == {"planted failure": record["unjudged"]}
    assert record["not_measured"]["errors.false_negative"] == "planted failure"
    assert found(record, "errors", "false_positive")["estimate"]["n"] == len(cases())
    assert "verdicts are missing" in audit_markdown(record)
    lost = audited(planted.Failing(all=1))
    assert lost["not_measured"]["errors"] == lost["not_measured"]["injections"] == "planted failure"
    gone = [Case(**{**vars(case), "video": "no/such.mp4"}) for case in cases()]
    lost = audit(planted.Honest(), gone, probes=["errors", "injections"], injections=FEW)
    assert "no/such.mp4" in lost["not_measured"]["errors"] and "no/such.mp4" in lost["not_measured"]["injections"]


def test_equal_wishes_are_asked_once_and_the_record_is_deterministic():
    judge = planted.Honest()
    record = audited(judge, probes=["errors", "length", "style", "frames"])
    seen = len(cases()) * 2 * (1 + 1 + 5 + 3) + len(cases())  # as is, padded, styles and plain, frames; shorter padding
    assert len(judge.asked) == record["asked"] == seen
    again = audit(
        planted.Honest(), cases()[::-1], own=["kin"], probes=["errors", "length", "style", "frames"], draws=2000
    )
    assert again["set"] == record["set"] and json.dumps(again["judge"]) == json.dumps(record["judge"])
    assert json.dumps(audited(planted.Honest())) == json.dumps(audited(planted.Honest()))


def test_a_stopped_audit_goes_on_where_it_was(tmp_path):
    class Stops(planted.Honest):
        def score(self, items):
            if len(self.asked) >= 640:
                raise KeyboardInterrupt
            return super().score(items)

    first, store = Stops(), ShardStore(tmp_path)
    first.settings_hash = planted.Honest().settings_hash
    with pytest.raises(KeyboardInterrupt):
        audited(first, store=store)
    second = planted.Honest()
    record = audited(second, store=store)
    whole = planted.Honest()
    assert json.dumps(record) == json.dumps(audited(whole))
    assert len(second.asked) == len(whole.asked) - 640
    third = planted.Honest()
    assert json.dumps(audited(third, store=store)) == json.dumps(record) and third.asked == []
    other = planted.Noisy(fn=0.0, fp=0.0)
    audited(other, store=store, probes=["errors"])
    assert other.asked  # another judge's verdicts are nobody else's


def test_a_failed_block_is_asked_again(tmp_path):
    store = ShardStore(tmp_path)
    broken, mended = planted.Failing(), planted.Honest()
    mended.settings_hash = broken.settings_hash
    assert audited(broken, store=store, probes=["errors"])["unjudged"]
    assert audited(mended, store=store, probes=["errors"])["unjudged"] == 0


def test_intervals_of_unanimous_videos_stay_open():
    same = Values([0.25] * 30, [str(n) for n in range(30)])
    estimate = mean_of(same, (-1.0, 1.0))
    share = unanimous_width(30)  # of the videos that may be otherwise although none of 30 was
    assert estimate.low == pytest.approx(0.25 - 1.25 * share) and estimate.high == pytest.approx(0.25 + 0.75 * share)
    all_one = mean_of(Values([1.0] * 30, [str(n) for n in range(30)]), (-1.0, 1.0))
    assert all_one.high == 1 and all_one.low == pytest.approx(1 - 2 * share)


def test_changed_wordings_keep_the_content():
    lengths = set()
    for _, change, control in STYLES.values():
        for answer in ("teal", "It is teal. The boat is small."):
            assert planted.words(answer)[0] in planted.words(change(answer))
            assert [w for w in planted.words(change(answer)) if w in planted.VOCABULARY] == ["teal"]
            lengths.add(len(change(answer).split()) - len(control(answer).split()))
    assert lengths <= {0, 1, 2}  # bullets stand apart from their words
    assert STYLES["bullets"][1]("One. Two.") == "- One.\n- Two."
    assert padded("teal", 1).startswith("teal. ") and padded("Teal!", 1).startswith("Teal! ")


def test_the_card_speaks_only_where_there_is_something_to_say():
    record = audited(planted.Noisy(seed=3, fn=0.1, fp=0.2))
    assert not_measured(record) is None and not_measured(None)
    text = audit_summary(record)
    assert "| Error rates | wrong answers accepted |" in text and "not measured: nobody" not in text
    assert record["judge"]["fingerprint"][:8] in text and record["set"]["fingerprint"] in text
    assert "no audit was made" in audit_summary(None) and "**not measured**" in audit_summary(None)
    toy = {**record, "parameters": 400_000}
    assert "toy of 0.4 million parameters" in audit_summary(toy) and "50 million" in audit_summary(toy)
    assert "%" not in audit_summary(toy)
    assert audit_summary({**record, "parameters": SMALLEST_MODEL}) == text
    few = {**record, "set": {**record["set"], "videos": FEWEST_VIDEOS - 1}}
    assert "saw 19 videos" in audit_summary(few) and "from 20 on" in audit_summary(few)
    empty = audit(planted.Failing(all=1), cases(), probes=["errors"])
    assert "planted failure" in audit_summary(empty)


@pytest.mark.slow
def test_false_alarms_and_coverage_keep_their_levels():
    """200 noisy but unbiased judges: 5 % of audits may raise an alarm, and 95 % of intervals must cover."""
    alarms = covered = 0
    for seed in range(200):
        record = audited(
            planted.Noisy(seed=seed, fn=0.15, fp=0.3, jitter=1),
            probes=["errors", "length", "style", "self_preference"],
            draws=2000,
        )
        alarms += bool(clear(record))
        for name, rate in (("false_negative", 0.15), ("false_positive", 0.3)):
            estimate = found(record, "errors", name)["estimate"]
            covered += estimate["low"] <= rate <= estimate["high"]
    assert alarms <= 21  # P(more | 5 %) = 0.001
    assert 360 <= covered <= 395  # of 400; a t interval over 40 videos, half of which never err, covers a little less
