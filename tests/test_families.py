"""families.py: real tasks get the right family, and every instruction has the shape, a procedure of its own, and one line for the answer."""

import re
import timeit
from dataclasses import FrozenInstanceError

import pytest

from orcalab import families, recipes, rows, strategies
from orcalab.families import CALLS, FAMILIES, candidates, family_of, instruction

# Names of tasks as FLAN-v2 has them (Flan 2021, T0, CoT, NIv2, dialogue), and reasoning_gym's, by the family that each must get.
TASKS = {
    "question-generation": "task001_quoref_question_generation cot_gsm8k_ii stream_aqua_ii cot_creak_ii cot_input_inversion_qasc adversarial_qa_dbert_generate_question "
                           "task074_squad1 task082_babi_t1_single_supporting_fact_question_generation social_i_qa_Generate_the_question_from_the_answer "
                           "race_high_Write_a_multi_choice_question_options_given_ task176_break_decompose_questions wiki_qa_Jeopardy_style",
    "wrong-answer-writing": "task005_mctaco_wrong_answer_generation_event_duration task042_qasc_incorrect_option_generation task055_multirc_write_incorrect_answer",
    "translation": "wmt16_translate/ro-en:1.0.0 wmt14_translate/fr-en:1.0.0 para_crawl_enes task117_spl_translation_en_de task1616_cc_alligned_translate_eng_tel "
                   "task1432_head_qa_language_translation_en_to_es",
    "title-and-keywords": "aeslc:1.0.0 task219_rocstories_title_answer_generation task1342_amazon_us_reviews_title quoref_Guess_Title_For_Context duorc_SelfRC_title_generation",
    "summarisation": "cnn_dailymail:3.4.0 gem/wiki_lingua_english_en:1.1.0 huggingface:xsum samsum:1.0.0 gigaword:1.2.0 multi_news:1.0.0 opinion_abstracts_idebate doctor_patient "
                     "task1355_sent_comp_summarization task511_reddit_tifu_long_text_summarization",
    "data-to-text": "gem/common_gen:1.1.0 gem/e2e_nlg:1.1.0 gem/dart:1.1.0 gem/web_nlg_en:1.1.0 wiki_bio_key_content task1728_web_nlg_data_to_text task102_commongen_sentence_generation",
    "information-extraction": "task1447_drug_extraction_ade task610_conllpp_ner task1410_dart_relationship_extraction task958_e2e_nlg_text_generation_parse "
                              "task181_outcome_extraction wiki_hop_original_explain_relation",
    "code": "task107_splash_question_to_sql task868_cfq_mcd1_explanation_to_sql task210_logic2text_structured_text_generation dr_repair_error_comments dmcc_python",
    "list-operations": "task123_conala_sort_dictionary task063_first_i_elements task206_collatz_conjecture task1189_check_char_in_string task499_extract_and_add_all_numbers_from_list "
                       "task245_check_presence_in_set_intersection task1405_find_median word_sorting",
    "dates-and-times": "calendar_arithmetic task1404_date_conversion task1332_check_leap_year task004_mctaco_answer_generation_event_duration task1498_24hour_to_12hour_clock "
                       "task1507_boolean_temporal_reasoning",
    "word-problems": "cot_gsm8k stream_aqua gsm8k aqua numglue lila_addsub math_Geometry task751_svamp_subtraction_question_answering task1419_mathqa_gain "
                     "task745_ai2_arithmetic_questions_arithmetic task867_mawps_multiop_question_answering",
    "arithmetic-and-algebra": "chain_sum simple_equations math_dataset/algebra__linear_1d:1.0.0 task085_unnatural_addsub_arithmetic task092_check_prime_classification",
    "known-quantities": "leg_counting object_counting task1359_numer_sense_answer_generation",
    "story-ordering": "task300_storycloze_order_generation task217_rocstories_ordering_answer_generation wiqa_what_is_the_missing_first_step",
    "correction": "fix_punct true_case word_segment task1557_jfleg_answer_generation task1415_youtube_caption_corrections_grammar_correction",
    "rewriting": "task111_asset_sentence_simplification task927_yelp_negative_to_positive_style_transfer task045_miscellaneous_sentence_paraphrasing "
                 "task770_pawsx_english_text_modification task413_mickey_en_sentence_perturbation_generation task1195_disflqa_disfluent_to_fluent_conversion",
    "answer-checking": "glue/qnli:2.0.0 wiki_qa_Decide_good_answer qasc_is_correct_1 race_middle_Is_this_the_right_answer task349_squad2 task050_multirc_answerability "
                       "social_i_qa_Check_if_a_random_answer_is_valid_or_not task1294_wiki_qa_answer_verification task057_multirc_classify_incorrect_answer",
    "composition": "task853_hippocorpus_long_text_generation cos_e_v1.11_rationale app_reviews_generate_review dream_generate_last_utterance task593_sciq_explanation_generation "
                   "wiki_dialog_ii qrecc_input_inversion task1729_personachat_generate_next task1711_poki_text_generation duorc_ParaphraseRC_build_story_around_qa",
    "syllogism": "syllogism",
    "known-claims": "cot_creak task403_creak_commonsense_inference task116_com2sense_commonsense_reasoning",
    "what-if": "quarel_logic_test quartz_having_read_above_passage wiqa_effect_with_string_answer ropes_prompt_mix task1380_quarel_correct_option_generation",
    "deduction": "task966_ruletaker_fact_checking_based_on_given_context task083_babi_t1_single_supporting_fact_answer_generation task153_tomqa_find_location_hard_clean "
                 "logical_deduction_three_objects",
    "claim-verification": "task1366_healthfact_classification task1187_politifact_classification task738_perspectrum_classification",
    "science-questions": "cot_qasc openbookqa:0.1.0 ai2_arc/ARC-Challenge:1.0.0 arc_easy sciq_Multiple_Choice_Closed_Book_ unified_qa_science_inst qasc_qa_with_separated_facts_3 "
                         "task229_arc_answer_generation_hard",
    "multi-hop": "cot_strategyqa kilt_tasks_hotpotqa_complex_question wiki_hop_original_choose_best_object_affirmative_1 task170_hotpotqa_answer_generation",
    "fact-recall": "natural_questions_open:1.0.0 trivia_qa/rc:1.1.0 web_questions_whats_the_answer task1146_country_capital task306_jeopardy_answer_generation_double "
                   "wiki_qa_Direct_Answer_to_Question",
    "entailment": "cot_esnli anli/r1:0.1.0 super_glue/rte:1.0.2 super_glue/cb:1.0.2 glue/mnli:2.0.0 snli:1.1.0 task200_mnli_entailment_classification task1612_sick_label_classification",
    "commonsense": "cot_ecqa cot_sensemaking cos_e_v1.11_question_option_description_text super_glue/copa:1.0.2 piqa:1.0.0 social_i_qa_Show_choices_and_generate_answer "
                   "task827_copa_commonsense_reasoning task1200_atomic_classification_xeffect task291_semeval_2020_task4_commonsense_validation",
    "story-endings": "story_cloze/2016:1.0.0 hellaswag:1.1.0 task213_rocstories_correct_ending_classification task156_codah_classification_adversarial",
    "coreference": "winogrande:1.1.0 definite_pronoun_resolution:1.1.0 super_glue/wsc.fixed:1.0.2 glue/wnli:2.0.0 task330_gap_answer_generation task1391_winogrande_easy_answer_generation",
    "paraphrase": "glue/mrpc:2.0.0 glue/qqp:2.0.0 glue/stsb:2.0.0 paws_wiki:1.1.0 task1288_glue_mrpc_paraphrasing task146_afs_argument_similarity_gun_control",
    "word-meaning": "super_glue/wic:1.0.2 task1508_wordnet_antonyms task1582_bless_hypernym_generation task1152_bard_analogical_reasoning_causation",
    "gap-filling": "lambada:1.0.0 task965_librispeech_asr_missing_word_prediction task945_wiki_cloze_bn_multiple_choice_question_answering",
    "sentiment": "imdb_reviews/plain_text:1.0.0 sentiment140:1.0.0 glue/sst2:2.0.0 yelp_polarity_reviews:0.2.0 amazon_polarity_Is_this_review app_reviews_convert_to_star_rating "
                 "task512_twitter_emotion_classification task1361_movierationales_classification",
    "judging-remarks": "task137_detoxifying_lms_classification_toxicity task333_hateeval_classification_hate_en task320_stereoset_classification_race task386_semeval_2018_task3_irony_detection "
                       "task573_air_dialogue_classification task354_casino_classification_negotiation_no_need task106_scruples_ethical_judgment",
    "grammar-analysis": "glue/cola:2.0.0 task1559_blimp_binary_classification task1167_penn_treebank_coarse_pos_tagging task429_senteval_tense task089_swap_words_verification",
    "extractive-reading": "needle_haystack squad/v1.1:3.0.0 squad/v2.0:3.0.0 coqa:1.0.0 quac:1.0.0 drop:2.0.0 super_glue/record:1.0.2 adversarial_qa_droberta_based_on quoref_Find_Answer "
                          "duorc_ParaphraseRC_extract_answer wiki_dialog qrecc task344_hybridqa_answer_generation task768_qed_text_span_selection",
    "reading-and-reasoning": "stream_qed bool_q:1.0.0 cosmos_qa:1.0.0 super_glue/multirc:1.0.2 quail_context_question_description_text dream_baseline race_high_Taking_a_test "
                             "task332_tellmewhy_answer_generation",
    "multiple-choice": "task473_parsinlu_mc_classification",
    "topic-classification": "ag_news_subset:1.0.0 trec:1.0.0 dbpedia_14_pick_one_category_for_the_following_text task562_alt_language_identification task198_mnli_domain_classification "
                            "task1574_amazon_reviews_multi_language_identification task1592_yahoo_answers_topics_classfication task744_eurlex_classification",
    "open-qa": "task1656_gooaq_answer_generation task225_english_language_answer_generation task669_ambigqa_answer_generation",
}


def test_real_tasks_get_their_family():
    wanted = {task: name for name, tasks in TASKS.items() for task in tasks.split()}
    assert len(wanted) == sum(len(tasks.split()) for tasks in TASKS.values()) > 240
    assert {task: family_of(task).name for task in wanted} == wanted
    assert {task: family_of(task.upper(), "zs_opt").name for task in wanted} == wanted  # whatever the case of a name and the kind of template


def test_every_family_has_tasks_and_there_are_enough():
    assert set(TASKS) == set(FAMILIES) and len(FAMILIES) == 41
    assert all(name == family.name and re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name, family in FAMILIES.items())
    with pytest.raises(FrozenInstanceError):
        FAMILIES["syllogism"].strategy = "step-by-step"


@pytest.mark.parametrize("name, strategy", [
    ("aqua", "step-by-step"), ("gsm8k", "step-by-step"), ("strategyqa", "recall-reason-generate"), ("qasc", "recall-then-generate"), ("ecqa", "explain-then-answer"),
    ("sensemaking", "explain-then-answer"), ("esnli", "explain-then-answer"), ("qed", "explain-then-answer"), ("creak", "direct-answer"), ("my_own", "explain-then-answer")])
def test_flans_chains_of_thought_keep_their_strategies(tmp_path, name, strategy):
    assert {family_of(task).strategy for task in (name, f"cot_{name}", f"stream_{name}")} == {strategy}
    row = rows.tsv(tmp_path / f"{name}_train.tsv", 1, "Why?\tSo.\tBecause.")
    assert (row.task, row.strategy) == (name, strategy)
    assert {family_of(task).name for task in (f"cot_{name}_ii", f"stream_{name}_ii", f"cot_ii_{name}")} == {"question-generation"}


def test_the_laptops_tasks_keep_their_strategies():
    assert {t.name: family_of(t.name).strategy for t in recipes.TASKS} == {t.name: t.strategy for t in recipes.TASKS}


def test_a_name_that_tells_nothing():
    assert [family_of("t0", kind).name for kind in ("", "zs_noopt", "fs_noopt", "zs_opt", "fs_opt")] == ["open-qa"] * 3 + ["multiple-choice"] * 2
    assert family_of("task646_answer_generation", "zs_opt").name == family_of("task9999_new", "fs_opt").name == "open-qa"  # all of NIv2 is called _opt
    assert family_of("t0") is family_of("t0") and family_of.cache_info().hits > 0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_an_instruction_has_the_shape(family):
    text = instruction(family)
    assert text == instruction(family, family.strategy) and text not in strategies.STRATEGIES.values()
    if family.strategy == "direct-answer":
        assert family.steps == () and text == f"You will be given a task. Give the answer alone, without any explanation: {family.final}."
        assert strategies.FINAL not in text and not re.search(r"\d\. ", text)
    else:
        head, *steps = re.split(r" (?=\d+\. )", text)
        assert head == "You will be given a task. Use the following steps to solve it." and 2 <= len(family.steps) <= 6
        assert steps == [f"{n}. {s}" for n, s in enumerate((*family.steps, f"{strategies.FINAL} write {family.final}."), 1)]
        assert all(re.fullmatch(r"[A-Z][^.?]+[.?]", step) for step in family.steps)  # one sentence each
    assert text.count(strategies.FINAL) == bool(family.steps) and not re.search(r"[.:] *$|^[A-Z](?!es if)", family.final) and not family.why.endswith(".")
    assert family.strategy in strategies.STRATEGIES and set(family.others) <= set(strategies.STRATEGIES) and (not family.calls or family.calls in CALLS)


def test_no_two_instructions_and_no_two_steps_are_the_same():
    steps = [step for family in FAMILIES.values() for step in family.steps]
    assert len({instruction(f) for f in FAMILIES.values()}) == len({f.why for f in FAMILIES.values()}) == len(FAMILIES) and len(set(steps)) == len(steps) > 100


def test_another_strategy_is_asked_for_in_general_words():
    family = FAMILIES["multi-hop"]
    assert instruction(family, "direct-answer") == strategies.STRATEGIES["direct-answer"] and instruction(family, "guess-and-check") == strategies.STRATEGIES["guess-and-check"]
    with pytest.raises(ValueError, match="no strategy named 'guess-and-chek'; did you mean 'guess-and-check'"):
        instruction(family, "guess-and-chek")


def test_candidates_are_the_familys_own_strategy_and_others():
    told = {f.name: candidates(f) for f in FAMILIES.values()}
    assert all(list(told[f.name]) == list(dict.fromkeys((f.strategy, *f.others))) and len(told[f.name]) > 1 for f in FAMILIES.values())
    assert told["syllogism"] == {"direct-answer": instruction(FAMILIES["syllogism"]), **{s: strategies.STRATEGIES[s] for s in ("step-by-step", "explain-then-answer")}}
    assert {f.strategy for f in FAMILIES.values()} == {s for t in told.values() for s in t} == set(strategies.STRATEGIES)
    assert all("direct-answer" in t for t in told.values())  # whether steps are of use is always tried


def test_the_last_of_several_calls_asks_for_a_whole_answer():
    assert list(CALLS) == ["draft-check-rewrite", "recall-then-reason", "solve-twice"] and {f.calls for f in FAMILIES.values()} == {"", *CALLS}
    assert [len(turns) for turns in CALLS.values()] == [2, 2, 3] and len({turn for turns in CALLS.values() for turn in turns}) == 7
    for *before, last in CALLS.values():
        assert last.endswith(families._WHOLE) and "stand alone" in last and "mention nothing that you wrote before" in last
        assert not any(families._WHOLE in turn for turn in before)


@pytest.mark.parametrize("piece", ["a", "_", "9", "the_", "cot_", "stream_ii", "alt_", "dialog_conv_", "e2e_nlg_", "language_review_", "wiki_qa", "incorrect_", "lhoestq", "multi_choice_"])
def test_a_long_name_is_no_harder_than_a_short_one(piece):
    """A pattern that tries again and again takes minutes for the longer one; ours take some 0.25 ms for 200 characters, and ten times that for ten times as many."""
    look = lambda length: min(timeit.repeat(lambda: family_of.__wrapped__((piece * length)[:length]), number=2, repeat=9)) / 2
    assert look(200) < 1e-3 and look(2000) < 0.1
