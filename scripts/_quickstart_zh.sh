# Sourced by quickstart.sh behind _setup.sh, for --zh: an encoder that reads Chinese learns from the comments in
# data/sample_zh which are 正面 and which 负面, once with all of its layers and once with nothing but a head on it.
MODEL="${MODEL:-models/multilingual-e5-small}"
OUTPUT="${OUTPUT:-outputs/quickstart-zh}"

[[ -f "$MODEL/config.json" ]] || python download.py --model multilingual-e5-small --target_dir "$MODEL"

# `fine_tune OUTPUT --flags of main_SFT.py`
fine_tune() {
  python main_SFT.py --model_path "$MODEL" --label_path data/sample_zh/labels.txt \
    --train_data_path data/sample_zh/train.tsv --dev_data_path data/sample_zh/dev.tsv \
    --test_data_path data/sample_zh/test.tsv --objective classify --prompt text_only --batch_size 8 \
    --output_dir "$@"
}

echo "== 1/4 微调 $MODEL：用 data/sample_zh 的评论训练各层参数和分类头"
# the vectors of 250,000 tokens, four fifths of the model, stay as they are: less memory, and few of them stand here
fine_tune "$OUTPUT/sft" --tuning full --freeze_embeddings --learning_rate 1e-4 --num_epochs 10 --eval_steps 30 "$@"

echo "== 2/4 对照：模型不变，只训练分类头"
fine_tune "$OUTPUT/head" --tuning head --learning_rate 5e-3 --num_epochs 10 --eval_steps 30

echo "== 3/4 用微调后的模型读两条新评论"
printf '%s\n' "等了一个小时，菜还是凉的，不会再来了。" "房间干净，老板热情，住得很开心！" |
  python inference.py --model_path "$OUTPUT/sft" --text -

echo "== 4/4 在 data/sample_zh 的测试评论上比较"
python -m scripts.compare "只训练分类头=$OUTPUT/head" "微调=$OUTPUT/sft" --language zh --output_dir "$OUTPUT" \
  --columns n accuracy f1_macro auc ece --markdown_path "$OUTPUT/comparison.md"
python -m scripts.report "微调=$OUTPUT/sft" "只训练分类头=$OUTPUT/head" --language zh --output_dir "$OUTPUT"
cat <<END
报告      $OUTPUT/report.html（用浏览器打开：得分、图表、错得最多的评论）
模型      $OUTPUT/sft（权重、分词器、task.json；TensorBoard 日志在 runs/）
预测结果  $OUTPUT/sft/predictions.jsonl
得分      $OUTPUT/sft/test_summary.txt（每个标签）、$OUTPUT/comparison.md（上面的表格）
训练曲线  $OUTPUT/sft/training_curves.png
试一试    source $VENV/bin/activate; python inference.py --model_path $OUTPUT/sft --interactive
END
