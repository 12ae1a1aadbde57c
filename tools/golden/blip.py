"""BLIP of the hub: captions and answers with ids, retrieval, contrast, texts."""

import numpy as np
from make_golden import hub_settings, images, redraw, save_hub

VOCAB, BOS, SEP, PAD = 50, 48, 21, 0
TOKENS = np.array(
  [
    [48, 3, 7, 9, 11, 12, 21],
    [48, 5, 6, 21, 0, 0, 0],
    [48, 12, 30, 22, 21, 0, 0],
  ],
  np.int32,
)
ANSWER = np.array([[48, 3, 7, 21], [48, 9, 21, 0], [48, 44, 13, 21]], np.int32)

# Ways of decoding, beside what all say.
WAYS: dict[str, dict] = dict(
  greedy={},
  beam=dict(beams=3),
  beam_varied=dict(beams=4, no_repeat=2, length_penalty=2.0, min_length=6),
)


def make() -> None:
  """Records the cases."""
  import torch
  import transformers as t

  image = images((3, 24, 24, 3), seed=31)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  ids, mask = _torch(TOKENS), _torch((TOKENS != PAD) * 1)
  inputs = {"image": image, "tokens": TOKENS, "mask": mask.numpy()}

  model = _sharp(redraw(t.BlipForConditionalGeneration(_config(24)), seed=31))
  with torch.no_grad():
    found = model(pixels, ids, attention_mask=mask)
  save_hub(
    "blip_caption",
    model,
    inputs,
    {"0": found.logits, "1/image": found.image_embeds},
    {
      name: _written(
        model,
        TOKENS[:, :2] if name == "greedy" else TOKENS[:, :1],
        {"image": image},
        way,
        lambda prompt: dict(
          pixel_values=pixels,
          # The reference drops the last token of a prompt.
          input_ids=torch.cat([_torch(prompt), ids[:, :1]], 1),
        ),
      )
      for name, way in WAYS.items()
    },
  )

  model = _sharp(redraw(t.BlipForQuestionAnswering(_config(16)), seed=33))
  answer, answer_mask = _torch(ANSWER), _torch((ANSWER != PAD) * 1)
  with torch.no_grad():
    seen = model.vision_model(pixels).last_hidden_state
    text = model.text_encoder(
      ids, attention_mask=mask, encoder_hidden_states=seen
    ).last_hidden_state
    logits = model.text_decoder(
      answer,
      attention_mask=answer_mask,
      encoder_hidden_states=text,
      # Says nothing: the reference does not hand it on to the attention.
      encoder_attention_mask=mask,
    ).logits
  save_hub(
    "blip_answer",
    model,
    {
      **inputs,
      "decoder_tokens": ANSWER,
      "decoder_mask": answer_mask.numpy(),
    },
    {"0": logits, "1/image": seen, "1/text": text},
    {
      name: _written(
        model,
        TOKENS[:, :1],
        inputs,
        way,
        lambda _: dict(pixel_values=pixels, input_ids=ids, attention_mask=mask),
      )
      for name, way in WAYS.items()
    },
  )

  model = redraw(t.BlipForImageTextRetrieval(_config(24)), seed=34)
  with torch.no_grad():
    found = model(ids, pixels, attention_mask=mask)
    cosine = model(ids, pixels, attention_mask=mask, use_itm_head=False)
    project = torch.nn.functional.normalize
    outputs = {
      "0": found.itm_score,
      "1/text": found.question_embeds,
      "1/image_embedding": project(
        model.vision_proj(found.last_hidden_state[:, 0]), dim=-1
      ),
      "1/text_embedding": project(
        model.text_proj(cosine.question_embeds[:, 0]), dim=-1
      ),
    }
  both = outputs["1/image_embedding"] @ outputs["1/text_embedding"].T
  assert torch.allclose(both, cosine.itm_score, atol=1e-6)
  save_hub("blip_retrieval", model, inputs, outputs)

  config = _config(16)
  config.projection_dim = 12
  config.text_config.num_hidden_layers = 1
  config.vision_config.num_hidden_layers = 1
  model = redraw(t.BlipModel(config), seed=54)
  with torch.no_grad():
    found = model(ids, pixels, attention_mask=mask)
  save_hub(
    "blip_contrastive",
    model,
    inputs,
    {
      "0": found.logits_per_image,
      "1/image": found.vision_model_output.last_hidden_state,
      "1/text": found.text_model_output.last_hidden_state,
      "1/image_embedding": found.image_embeds,
      "1/text_embedding": found.text_embeds,
    },
  )
  _text(ids, mask)


def _text(ids, mask) -> None:
  """The text encoder alone, over a memory."""
  import torch
  from transformers import BlipTextModel

  config = _config(24).text_config
  config.hidden_act = "gelu_new"
  model = redraw(BlipTextModel(config), seed=55)
  memory = images((3, 5, 24), seed=55)
  with torch.no_grad():
    found = model(
      ids,
      attention_mask=mask,
      encoder_hidden_states=torch.from_numpy(memory),
    )
  save_hub(
    "blip_text",
    model,
    {
      "tokens": TOKENS,
      "mask": mask.numpy(),
      "memory": memory,
    },
    {"0": found.pooler_output, "1/tokens": found.last_hidden_state},
  )


def _config(width: int):
  from transformers import BlipConfig

  return BlipConfig(
    vision_config=dict(
      hidden_size=width,
      intermediate_size=36,
      num_hidden_layers=2,
      num_attention_heads=width // 8,
      image_size=24,
      patch_size=8,
      layer_norm_eps=1e-6,
    ),
    text_config=dict(
      vocab_size=VOCAB,
      hidden_size=16,
      intermediate_size=28,
      num_hidden_layers=2,
      num_attention_heads=4,
      max_position_embeddings=20,
      bos_token_id=BOS,
      eos_token_id=SEP,
      sep_token_id=SEP,
      pad_token_id=PAD,
    ),
    image_text_hidden_size=12,
  )


def _sharp(model):
  """Returns the model with what it sees weighing more, else texts are alike."""
  for name, value in model.named_parameters():
    if not name.startswith("text_"):
      continue
    if "crossattention.self" in name and name.endswith("weight"):
      value.data *= 8.0 if "value" in name else 3.0
    if "position_embeddings" in name:
      value.data *= 4.0
    if "cls" in name and name.endswith("bias"):
      value.data *= 0.1
  return model


def _torch(x: np.ndarray):
  import torch

  return torch.from_numpy(np.ascontiguousarray(x).astype(np.int64))


def _written(model, prompt, inputs, way, given) -> dict:
  import torch

  settings = dict(length=12, eos_ids=[SEP], pad_id=PAD) | way
  said = hub_settings(settings)
  # The reference's generate says these itself.
  del said["eos_token_id"], said["pad_token_id"]
  with torch.no_grad():
    ids = model.generate(**given(prompt), **said)
  return {
    "settings": settings,
    "prompt": prompt,
    "ids": ids.numpy().astype(np.int32),
    **inputs,
  }
