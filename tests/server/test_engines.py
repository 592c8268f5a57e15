import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_async.server.data import build_idf_table
from rerank_async.server.engines import (
    ENGINES,
    Engine,
    LexicalEngine,
    Scored,
    Stems,
    create,
    idf_table,
    words,
)

ARXIV = Path(__file__).resolve().parents[2] / ".." / "shared/data/arxiv"

DATA = files("rerank_async.server") / "data"

# Inflections, stop words, punctuation, unknown stems and other scripts, besides arbitrary text.
ENGLISH = ("small", "Smaller", "the", "of", "don't", "reading", "reads", "read", "documents,", "!")
OTHER = ("café", "straße", "ΣΊΣΥΦΟΣ", "検索", "zyzzyva", "snake_case", "42")
TEXTS = st.one_of(
    st.lists(st.sampled_from(ENGLISH)).map(" ".join),
    st.lists(st.sampled_from(ENGLISH) | st.sampled_from(OTHER)).map(" ".join),
    st.text(max_size=80),
)


@pytest.fixture(scope="module")
def engine() -> LexicalEngine:
    return LexicalEngine()


def score_one(engine: Engine, query: str, document: str) -> float:
    [score] = engine.score(query, [document]).scores
    return score


class TestTheScore:
    def test_is_the_formula_worked_by_hand(self, engine: LexicalEngine) -> None:
        # From the table: small 3.6139, read 6.1363, document 6.4207.
        # The document's content words are small, words, read, reading and quickly, so
        # len(d) = 5 and K = 1.2 * (1 - 0.75 + 0.75 * 5 / 100) = 0.345.
        # small     3.6139 * 1 * 2.2 / (1 + 0.345)   =  5.911212
        # read      6.1363 * 2 * 2.2 / (2 + 0.345)   = 11.513740
        # document  is not there                     =  0
        # divided by (3.6139 + 6.1363 + 6.4207) * 2.2 = 35.575980
        score = score_one(
            engine, "Reading of small documents", "These are small words: read, reading quickly!"
        )
        assert score == pytest.approx(17.424952 / 35.575980, abs=1e-7)

    @given(query=TEXTS, documents=st.lists(TEXTS, max_size=5))
    def test_is_at_least_0_and_below_1(
        self, engine: LexicalEngine, query: str, documents: list[str]
    ) -> None:
        scores = engine.score(query, documents).scores
        assert len(scores) == len(documents)
        assert all(0.0 <= score < 1.0 for score in scores)

    def test_stays_below_1_for_a_document_that_only_repeats_the_query(
        self, engine: LexicalEngine
    ) -> None:
        assert 0.9 < score_one(engine, "zyzzyva", "zyzzyva " * 10_000) < 1.0

    @given(query=TEXTS, document=TEXTS, before=st.lists(TEXTS), after=st.lists(TEXTS))
    def test_is_the_same_to_the_bit_alone_and_in_any_company(
        self,
        engine: LexicalEngine,
        query: str,
        document: str,
        before: list[str],
        after: list[str],
    ) -> None:
        in_company = engine.score(query, [*before, document, *after]).scores[len(before)]
        assert in_company.hex() == score_one(engine, query, document).hex()

    @given(query=TEXTS, document=TEXTS)
    def test_does_not_depend_on_what_an_engine_scored_before(
        self, engine: LexicalEngine, query: str, document: str
    ) -> None:
        assert score_one(engine, query, document) == score_one(LexicalEngine(), query, document)

    def test_gains_less_from_each_further_occurrence(self, engine: LexicalEngine) -> None:
        scores = [
            score_one(engine, "turbine", "turbine " * times + "filler " * (50 - times))
            for times in range(6)
        ]
        gains = [later - earlier for earlier, later in pairwise(scores)]
        assert scores[0] == 0.0
        assert all(gain > 0 for gain in gains)
        assert gains == sorted(gains, reverse=True)

    def test_falls_as_the_document_grows_by_other_words(self, engine: LexicalEngine) -> None:
        scores = [
            score_one(engine, "turbine", "turbine" + " filler" * others) for others in (0, 10, 500)
        ]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == 3

    def test_takes_no_notice_of_stop_words_in_a_document(self, engine: LexicalEngine) -> None:
        assert score_one(engine, "turbine", "a turbine of the") == score_one(
            engine, "turbine", "turbine"
        )

    def test_counts_a_repeated_query_term_once(self, engine: LexicalEngine) -> None:
        document = "a turbine in the small house"
        assert score_one(engine, "turbines turbine house", document) == score_one(
            engine, "turbine house", document
        )

    def test_matches_inflections_and_ignores_case(self, engine: LexicalEngine) -> None:
        assert score_one(engine, "READING turbines", "reads turbine") == score_one(
            engine, "read turbine", "read turbine"
        )

    @pytest.mark.parametrize(
        ("query", "document"),
        [
            ("café", "le CAFÉ noir"),
            ("Straße", "STRASSE"),
            ("поиск", "быстрый поиск"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("検索", "これは、検索。"),
        ],
    )
    def test_works_for_words_beyond_ascii(
        self, engine: LexicalEngine, query: str, document: str
    ) -> None:
        assert score_one(engine, query, document) > 0.0

    def test_finds_no_word_inside_a_run_of_unspaced_script(self, engine: LexicalEngine) -> None:
        assert score_one(engine, "検索", "検索エンジン") == 0.0

    @pytest.mark.parametrize("query", ["", "?!", "the", "What is it that they were?", "don't"])
    def test_is_0_for_a_query_without_content_words(
        self, engine: LexicalEngine, query: str
    ) -> None:
        assert engine.score(query, ["What is it?", ""]).scores == [0.0, 0.0]

    def test_is_0_for_an_empty_document(self, engine: LexicalEngine) -> None:
        assert score_one(engine, "turbine", "") == 0.0

    def test_weighs_an_unknown_stem_by_the_maximum_idf(self, engine: LexicalEngine) -> None:
        rarest = max(read_table().values())
        assert engine.idf("zyzzyva") == rarest
        # Of two terms that occur alike, each has the share of its IDF.
        small = score_one(engine, "small zyzzyva", "small")
        unknown = score_one(engine, "small zyzzyva", "zyzzyva")
        assert unknown / small == pytest.approx(rarest / read_table()["small"])


class TestTheTokens:
    def test_are_the_querys_once_per_document_and_each_documents_own(
        self, engine: LexicalEngine
    ) -> None:
        scored = engine.score("what is it", ["one, two", "", "the three four five"])
        assert scored.total_tokens == 3 * 3 + 2 + 0 + 4

    def test_are_none_when_there_are_no_documents(self, engine: LexicalEngine) -> None:
        assert engine.score("what is it", []) == Scored([], 0)

    @given(query=TEXTS, left=st.lists(TEXTS, max_size=3), right=st.lists(TEXTS, max_size=3))
    def test_add_up_over_chunks(
        self, engine: LexicalEngine, query: str, left: list[str], right: list[str]
    ) -> None:
        chunks = [engine.score(query, chunk).total_tokens for chunk in (left, right)]
        assert engine.score(query, left + right).total_tokens == sum(chunks)

    @given(text=st.one_of(TEXTS, st.text(st.characters(max_codepoint=127))))
    def test_are_the_runs_of_letters_and_digits_in_the_casefolded_text(self, text: str) -> None:
        assert words(text) == re.findall(r"[^\W_]+", text.casefold())


class TestTheStemMemo:
    def test_holds_no_more_words_than_its_capacity(self) -> None:
        stems = Stems(capacity=3)
        for number in range(10):
            assert stems[f"words{number}"] == f"words{number}"
            assert len(stems) <= 3

    def test_leaves_a_very_long_word_unstemmed_and_does_not_keep_it(self) -> None:
        stems = Stems(longest=7)
        assert stems["reading"] == "read"
        assert stems["rereading"] == "rereading"
        assert list(stems) == ["reading"]

    def test_gives_a_stop_word_the_empty_stem(self) -> None:
        assert Stems()["the"] == ""

    def test_names_the_install_command_when_pystemmer_is_missing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "Stemmer", None)
        with pytest.raises(RuntimeError) as caught:
            create("lexical")
        assert (
            str(caught.value)
            == 'the lexical engine needs PyStemmer: pip install "rerank-async[server]"'
        )


class TestTheRegistry:
    def test_makes_each_engine_by_the_name_it_goes_by(self) -> None:
        assert [create(name).name for name in ENGINES] == list(ENGINES)

    def test_refuses_an_unknown_name_and_lists_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"'psychic'.*lexical"):
            create("psychic")


def read_table() -> dict[str, float]:
    return idf_table(DATA.joinpath("idf_wordnet.txt").read_text(encoding="utf-8").splitlines())


class TestTheTable:
    def test_has_3000_to_5000_stems(self) -> None:
        # The reader refuses duplicates, so these are all different.
        assert 3_000 <= len(read_table()) <= 5_000

    def test_has_only_positive_idfs(self) -> None:
        assert min(read_table().values()) > 0

    def test_has_no_stop_words(self) -> None:
        assert not {"the", "of", "is", "an", ""} & read_table().keys()

    def test_is_a_small_file_that_states_wordnets_copyright(self) -> None:
        text = DATA.joinpath("idf_wordnet.txt").read_text(encoding="utf-8")
        copyright_line = "WordNet 3.0 Copyright 2006 by Princeton University."
        assert 20_000 <= len(text) <= 34_000
        assert copyright_line in text
        assert copyright_line in DATA.joinpath("NOTICE").read_text(encoding="utf-8")

    def test_is_read_without_its_comments_and_blank_lines(self) -> None:
        assert idf_table(["# a comment", "", "1.5 one two", "2.5 three"]) == {
            "one": 1.5,
            "two": 1.5,
            "three": 2.5,
        }

    @pytest.mark.parametrize("lines", [["1.5 one", "2.5 one"], ["1.5 one one"], ["one 1.5"]])
    def test_is_refused_with_a_stem_twice_or_without_a_number(self, lines: list[str]) -> None:
        with pytest.raises(ValueError, match="one"):
            idf_table(lines)


LICENCE = "  1 You may use this.  \n  2   \n  3 WordNet 9.9 Copyright 2099 by Nobody.  \n"


def write_wordnet(folder: Path, glosses: Mapping[str, Sequence[str]]) -> Path:
    folder.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        synsets = [
            f"{number:08} 03 n 01 thing 0 000 | {gloss}  \n"
            for number, gloss in enumerate(glosses.get(part, ()))
        ]
        folder.joinpath(f"data.{part}").write_text(LICENCE + "".join(synsets), encoding="utf-8")
    return folder


class TestTheTablesScript:
    @pytest.fixture
    def wordnet(self, tmp_path: Path) -> Path:
        glosses = {
            "noun": ['a small dog; "the dogs bark"', "a cat"],
            "verb": ["walk a dog"],
            "adv": ["in the manner of a cat"],
        }
        return write_wordnet(tmp_path / "dict", glosses)

    def test_counts_each_gloss_once_per_stem(self, wordnet: Path) -> None:
        table = idf_table(build_idf_table.build(wordnet)["idf_wordnet.txt"].splitlines())
        # Four glosses; dog and cat are in two each, every other stem in one.
        twice = pytest.approx(math.log(1 + 2.5 / 2.5), abs=5e-5)
        once = pytest.approx(math.log(1 + 3.5 / 1.5), abs=5e-5)
        assert table == {
            "dog": twice,
            "cat": twice,
            "small": once,
            "bark": once,
            "walk": once,
            "manner": once,
        }

    def test_gives_the_same_bytes_whatever_the_order_of_the_glosses(
        self, wordnet: Path, tmp_path: Path
    ) -> None:
        reordered = {
            "adj": ["a cat", 'a small dog; "the dogs bark"'],
            "noun": ["in the manner of a cat", "walk a dog"],
        }
        other = write_wordnet(tmp_path / "other", reordered)
        assert build_idf_table.build(wordnet) == build_idf_table.build(other)

    def test_copies_the_release_and_the_licence_from_the_data_files(self, wordnet: Path) -> None:
        files_made = build_idf_table.build(wordnet)
        assert files_made["NOTICE"] == (
            "idf_wordnet.txt is derived from WordNet 9.9. "
            "The notice in WordNet's own files follows.\n\n"
            "You may use this.\n\nWordNet 9.9 Copyright 2099 by Nobody.\n"
        )
        assert "# WordNet 9.9 Copyright 2099 by Nobody.\n" in files_made["idf_wordnet.txt"]

    def test_check_passes_on_what_it_wrote_and_fails_on_a_change(
        self, wordnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        made = tmp_path / "made"
        made.mkdir()
        arguments = [str(wordnet), "--folder", str(made)]
        assert build_idf_table.main([*arguments, "--check"]) == 1
        assert build_idf_table.main(arguments) == 0
        assert build_idf_table.main([*arguments, "--check"]) == 0
        capsys.readouterr()
        with made.joinpath("idf_wordnet.txt").open("a", encoding="utf-8") as table:
            table.write("9.0 extra\n")
        assert build_idf_table.main([*arguments, "--check"]) == 1
        assert "idf_wordnet.txt is not what the script generates" in capsys.readouterr().err

    def test_says_which_file_it_cannot_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert build_idf_table.main([str(tmp_path)]) == 2
        assert "data.noun" in capsys.readouterr().err

    def test_refuses_a_line_without_a_gloss(
        self, wordnet: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with wordnet.joinpath("data.verb").open("a", encoding="utf-8") as data:
            data.write("00000009 29 v 01 walk 0 000\n")
        assert build_idf_table.main([str(wordnet)]) == 2
        assert "data.verb:5: a synset without a gloss" in capsys.readouterr().err


def ndcg_at_10(ranking: Sequence[str], gains: Mapping[str, int]) -> float:
    def dcg(in_order: Sequence[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(in_order[:10], start=1))

    return dcg([gains.get(doc_id, 0) for doc_id in ranking]) / dcg(
        sorted(gains.values(), reverse=True)
    )


@pytest.mark.skipif(not ARXIV.is_dir(), reason="the arXiv abstracts are not beside the checkout")
def test_reranking_arxiv_abstracts_improves_on_plain_word_overlap(engine: LexicalEngine) -> None:
    def read_lines(name: str) -> list[str]:
        return (ARXIV / name).read_text(encoding="utf-8").splitlines()

    documents: dict[str, str] = {}
    for record in map(json.loads, read_lines("corpus.jsonl")):
        documents[record["_id"]] = record["title"] + "\n" + record["text"]
    queries: dict[str, str] = {}
    for record in map(json.loads, read_lines("queries.jsonl")):
        queries[record["_id"]] = record["text"]
    qrels: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for line in read_lines("qrels/test.tsv")[1:]:
        query_id, doc_id, gain = line.split("\t")
        qrels[query_id][doc_id] = int(gain)
    first_stage: defaultdict[str, list[str]] = defaultdict(list)
    for line in read_lines("first-stage.run"):
        query_id, _, doc_id, *_ = line.split()
        first_stage[query_id].append(doc_id)

    before, after = [], []
    for query_id, gains in qrels.items():
        candidates = first_stage[query_id]
        scores = engine.score(queries[query_id], [documents[key] for key in candidates]).scores
        by_score = dict(zip(candidates, scores, strict=True))
        reranked = sorted(candidates, key=by_score.__getitem__, reverse=True)
        before.append(ndcg_at_10(candidates, gains))
        after.append(ndcg_at_10(reranked, gains))

    assert len(before) == 190
    assert fmean(before) == pytest.approx(0.351, abs=0.002)
    assert fmean(after) >= 0.45
