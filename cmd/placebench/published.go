package main

import (
	"fmt"
	"strings"
)

// fgdPublished is what the authors' result files have for their policy on the
// openb traces, in % of all GPUs at 100 % and at 130 %: the mean of seeds 42-51.
var fgdPublished = map[string][2]float64{
	"default": {95.23, 95.39}, "cpu050": {95.00, 95.21}, "cpu100": {95.21, 95.35}, "cpu200": {94.82, 95.05}, "cpu250": {93.20, 93.41},
	"gpushare40": {93.96, 94.15}, "gpushare60": {91.25, 91.40}, "gpushare80": {89.08, 89.30}, "gpushare100": {86.64, 86.90},
	"multigpu20": {95.53, 95.65}, "multigpu30": {96.36, 96.46}, "multigpu40": {96.91, 96.99}, "multigpu50": {97.09, 97.18},
	"gpuspec10": {94.66, 94.95}, "gpuspec20": {94.66, 94.84}, "gpuspec25": {93.91, 94.74}, "gpuspec33": {87.84, 94.55},
}

// published tells what the paper's policy reaches, beside that one and ours.
func published(trace, policy string) string {
	f, ok := fgdPublished[strings.TrimPrefix(trace, "openb_pod_list_")]
	if !ok || policy != "balance" && policy != "fgd" {
		return ""
	}
	return fmt.Sprintf("   published FGD %.2f %.2f", f[0], f[1])
}
