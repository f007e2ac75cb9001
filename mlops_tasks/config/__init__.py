"""Every setting, in frozen models: a `Recipe` says what to learn, an `Environment` says where to run.

All of a recipe that can change a result is in the keys of the stages that it can change; nothing of an environment is in
any key. Unknown keys are refused, and closed choices are unions of small models, so that no accepted key is without effect.
A relative path in a file is relative to that file.
"""
