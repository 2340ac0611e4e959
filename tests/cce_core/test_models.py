from dataclasses import replace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from cce_core import IGNORE_INDEX, LossConfig
from cce_core.models import UnsupportedModelError, attach, check, detach, split

# peft and the Trainer of transformers still speak of gradient checkpointing, as this package does.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**TINY, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Mistral": LLAMA,
    "Gemma2": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 3.0},
    "Cohere": {**LLAMA, "logit_scale": 0.25},
    "Granite": {**LLAMA, "logits_scaling": 4.0},
    "Phi3": {**LLAMA, "pad_token_id": 0},
    "Phi": {**LLAMA, "pad_token_id": 0},  # its head has a bias
    "GPT2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "OPT": {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 16},  # it calls a part of its trunk
}


def make(family: str, **options: object) -> transformers.PreTrainedModel:
    transformers.set_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family], **options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # logits that a softcap bends
        model.get_output_embeddings().weight.normal_(std=1.0)
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(97, (2, 11), generator=generator)
    labels = ids.clone()
    labels[0, :4] = IGNORE_INDEX
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    labels[1, 8:] = IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module, **further: object) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch(), **further).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_the_models_own(family: str) -> None:
    model = make(family)
    loss, expected = gradients(model)
    attach(model)
    ours, found = gradients(model)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_without_labels_nothing_changes_and_with_labels_no_logits_are_made() -> None:
    model = make("Llama")
    ids = batch()["input_ids"]
    expected = model(input_ids=ids).logits
    attach(model)
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert model(**batch()).logits is None
    assert model(batch()["input_ids"], labels=batch()["labels"]).loss > 0
    assert model.generate(ids[:1], max_new_tokens=3, do_sample=False).shape == (1, 14)


def test_detach_gives_the_logits_back() -> None:
    model = make("Qwen2")
    attach(model)
    detach(model)
    assert model(**batch()).logits.shape == (2, 11, 97)
    with pytest.raises(ValueError, match="No loss is attached"):
        detach(model)


def test_attaching_twice_is_an_error() -> None:
    model = make("Llama")
    attach(model)
    with pytest.raises(UnsupportedModelError, match="attached already"):
        attach(model)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_trainers_number_of_items_is_what_the_sum_is_divided_by(as_tensor: bool) -> None:
    model = make("Llama")
    items = torch.tensor(40) if as_tensor else 40
    loss, expected = gradients(model, num_items_in_batch=items)
    attach(model)
    ours, found = gradients(model, num_items_in_batch=items)
    assert ours == pytest.approx(loss, rel=1e-5)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-6)


def test_labels_that_are_shifted_already_are_not_shifted_again() -> None:
    model = make("Llama")
    attach(model)
    given = batch()
    expected = float(model(**given).loss.detach())
    labels = given.pop("labels")
    shifted = nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
    assert float(model(**given, shift_labels=shifted).loss.detach()) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("before", [True, False])
def test_lora_before_or_after(before: bool) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = make("Llama")
    plain = get_peft_model(make("Llama"), config)
    nn.init.normal_(plain.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight)
    loss, expected = gradients(plain)
    if before:
        attach(model)
    tuned = get_peft_model(model, config)
    tuned.load_state_dict(plain.state_dict())
    if not before:
        attach(tuned)
    ours, found = gradients(tuned)
    assert ours == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_tied_embeddings_get_both_gradients_under_checkpointing() -> None:
    model = make("Llama", tie_word_embeddings=True).train()
    loss, expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    attach(model)
    ours, found = gradients(model)
    assert ours == pytest.approx(loss, rel=1e-5)
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_bf16_weights() -> None:
    model = make("Gemma2").bfloat16()
    loss, _ = gradients(model)
    attach(model, LossConfig(preset="exact"))
    ours, _ = gradients(model)
    assert ours == pytest.approx(loss, rel=1e-2)


def test_states_that_a_family_keeps_in_fp32_are_taken_in_the_heads_dtype() -> None:
    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)
    model = transformers.MambaForCausalLM(config).bfloat16().eval()
    tokens = {"input_ids": batch()["input_ids"], "labels": batch()["labels"]}
    own = float(model(**tokens).loss.detach())
    attach(model)
    assert float(model(**tokens).loss.detach()) == pytest.approx(own, rel=1e-2)


class _Squashed(transformers.LlamaForCausalLM):
    """A family that does to its logits what its config does not say."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 5.0 * torch.tanh(output.logits / 5.0)
        return output


def test_a_family_with_hidden_post_processing_is_refused_and_left_as_it_was() -> None:
    model = _Squashed(transformers.LlamaConfig(**LLAMA)).train()
    with pytest.raises(UnsupportedModelError, match=r"logits of _Squashed on random tokens differ"):
        attach(model)
    assert model.training
    assert model(**batch()).logits is not None


class _Halved(transformers.LlamaForCausalLM):
    """A family that does to its states what its trunk does not."""

    def forward(self, *args, **kwargs):
        states = self.model(kwargs["input_ids"]).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(states / 2))


class _Headless(transformers.LlamaForCausalLM):
    """A family that multiplies by the weight itself."""

    def forward(self, *args, **kwargs):
        states = self.model(kwargs["input_ids"]).last_hidden_state
        return CausalLMOutputWithPast(logits=states @ self.lm_head.weight.T)


@pytest.mark.parametrize(
    ("family", "reason"),
    [(_Halved, "takes of random tokens differs by 5.0e-01"), (_Headless, "does not call its head")],
)
def test_a_head_that_does_not_take_the_trunks_states_is_refused(family: type, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        attach(family(transformers.LlamaConfig(**LLAMA)))


def test_a_softcap_that_shows_in_a_trained_models_logits_alone_is_found_in_a_fresh_one() -> None:
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**FAMILIES["Gemma2"]))
    model.bfloat16().eval()
    parts = split(model)
    check(parts)
    with pytest.raises(UnsupportedModelError, match=r"beyond weight, bias, scale and softcap"):
        check(replace(parts, head=replace(parts.head, softcap=30.0)))


@pytest.mark.parametrize("further", [{"output_router_logits": True}, {"z_loss_coefficient": 1e-4}])
def test_a_loss_that_the_config_adds_is_not_left_out_silently(further: dict) -> None:
    with pytest.raises(UnsupportedModelError, match=f"adds to the loss by {next(iter(further))}"):
        attach(make("Llama", **further))


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = make("Llama")
    model.lm_head = nn.Sequential(nn.Linear(32, 97, bias=False))
    with pytest.raises(UnsupportedModelError, match=r"is Sequential; expected nn\.Linear"):
        split(model)
    with pytest.raises(UnsupportedModelError, match=r"head of Linear is NoneType"):
        split(nn.Linear(2, 2))


def test_the_trainer_of_transformers_trains_an_attached_model(tmp_path) -> None:
    model = make("Llama").train()
    attach(model)
    rows = [{name: rows[0] for name, rows in batch().items()} for _ in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert trainer.evaluate(rows)["eval_loss"] < losses[0] / 2
