"""Knowledge distillation: a student that is trained towards what a teacher computes, besides the labels."""
