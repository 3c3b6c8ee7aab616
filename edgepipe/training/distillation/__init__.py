"""Knowledge distillation: training a student towards a teacher's outputs or features, besides the labels."""
