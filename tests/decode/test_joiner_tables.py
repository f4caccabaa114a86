import numpy as np
import pytest
import torch
from transducers import random_tables

from mode_ssm.config import HeadsConfig
from mode_ssm.decode.joiner_tables import JoinerTables
from mode_ssm.decode.transducer_tables import joiner_tables, projected
from mode_ssm.models.rnnt_ctc_heads import Joiner, StatelessPredictor
from mode_ssm.vocab import BLANK, NUM_CLASSES


def heads(context=2):
    torch.manual_seed(0)
    predictor = StatelessPredictor(HeadsConfig(predictor_context=context, d_joint=16)).eval()
    return predictor, Joiner(8, 16).eval()


@pytest.mark.parametrize("context", [1, 2])
def test_tables_give_the_log_probs_of_the_heads(context):
    predictor, joiner = heads(context)
    tables = joiner_tables(predictor, joiner)
    frames = torch.randn(3, 8)
    labels = torch.randint(0, NUM_CLASSES, (50, context))
    numbers = np.array([tables.number(row) for row in labels.tolist()])
    for frame in frames:
        expected = joiner(frame, predictor(labels)).log_softmax(-1).detach().numpy()
        np.testing.assert_allclose(tables.log_probs(projected(joiner, frame), numbers), expected, atol=1e-5)


def test_the_context_forgets_all_but_its_last_labels():
    tables = random_tables(np.random.default_rng(0))
    assert tables.number([]) == tables.number([BLANK, BLANK]) == 0
    assert tables.number([5, 6, 7]) == tables.number([6, 7]) == 6 * NUM_CLASSES + 7
    assert tables.follow(tables.number([6, 7]), 8) == tables.number([7, 8])


@pytest.mark.parametrize("context", [1, 2])
def test_the_internal_language_model_is_the_joiner_without_encoder_and_blank(context):
    predictor, joiner = heads(context)
    tables = joiner_tables(predictor, joiner)
    labels = [3, 7][:context]
    logits = joiner(torch.zeros(8), predictor(torch.tensor(labels))).detach()
    expected = logits[1:].log_softmax(-1).numpy()
    found = tables.internal_lm()[tables.number(labels)]
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    assert found[BLANK] == 0


def test_predictors_that_see_more_are_refused():
    with pytest.raises(ValueError, match=r"sees model\.heads\.predictor_context=3 labels: search with CTC"):
        joiner_tables(*heads(3))
    _, joiner = heads()
    with pytest.raises(ValueError, match="this one sees all labels"):
        joiner_tables(torch.nn.LSTM(4, 16), joiner)


def test_heads_in_training_give_the_tables_of_heads_in_evaluation():
    predictor, joiner = heads()
    expected = joiner_tables(predictor, joiner).predictor
    np.testing.assert_array_equal(joiner_tables(predictor.train(), joiner).predictor, expected)
    assert predictor.training


def test_heads_of_another_kind_are_refused():
    class Product(Joiner):
        def forward(self, encoder_out, predictor_out):
            return self.output(torch.tanh(self.encoder_proj(encoder_out) * predictor_out))

    predictor, _ = heads()
    with pytest.raises(ValueError, match="this one is another"):
        joiner_tables(predictor, Product(8, 16))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((40, 5), (41, 5), (41,)), r"1 to 2 labels \(41 or 1681\), not \(40, 5\)"),
        (((41, 5), (41, 6), (41,)), r"must be \(41, 5\) and \(41,\), not \(41, 6\) and \(41,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        JoinerTables(*map(np.zeros, shapes))
