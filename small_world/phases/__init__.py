"""The trainings, one after another: codec, vision encoder, text encoders with the UNet, MM-Diff, reader. They add
absolute imports of mmdiff_model.training to what the other rooms need, so no node imports them."""
