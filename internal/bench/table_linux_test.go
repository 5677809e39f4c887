package main

import (
	"strings"
	"testing"
)

func TestNumber(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0.00", 4.317: "4.32", -9.5: "-9.50", 45.06: "45.1", 999.4: "999", 1234: "1,234", -1234: "-1,234", 19000000: "19,000,000",
	} {
		if got := number(f); got != want {
			t.Errorf("number(%v) = %q, want %q", f, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		s    sample
		want float64
		cell string
	}{
		{nil, 0, "-"},
		{sample{3}, 3, "3.00"},
		{sample{9, 1, 2}, 2, "2.00 (1.00–9.00)"},
		{sample{4, 1, 2, 100}, 3, "3.00 (1.00–100)"},
	} {
		if got := test.s.median(); got != test.want {
			t.Errorf("median of %v = %v, want %v", test.s, got, test.want)
		}
		if got := test.s.cell(); got != test.cell {
			t.Errorf("cell of %v = %q, want %q", test.s, got, test.cell)
		}
	}
}

func TestTableStatesTargets(t *testing.T) {
	var b strings.Builder
	printTable(&b, []row{
		{what: "a", terminals: 1000, ours: sample{10}, floor: sample{8}, target: ofRatio, atMost: 1},
		{what: "b", terminals: 1000, ours: sample{4.3}, floor: sample{3.7}, target: ofOurs, atMost: 5},
		{what: "c", terminals: 1000, ours: sample{20}, base: sample{10}, target: ofRatio, atMost: 2},
		{what: "d", terminals: 1000, tutorial: sample{1}, target: ofRatio, atMost: 2},
	})
	for _, want := range []string{
		"| a | 1,000 | 10.0 | 8.00 | - | 1.25 | ≤ 1: missed |\n",
		"| b | 1,000 | 4.30 | 3.70 | - | 1.16 | ≤ 5: met |\n",
		"| c | 1,000 | 20.0 | - | - | 2.00 of the row above | ≤ 2: met |\n",
		"| d | 1,000 | - | - | 1.00 | - |  |\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
}

// A broadcast of the chain is as long as writeChain says, or the terminals would
// wait for bytes that never come.
func TestWriteChainKnowsTheBroadcast(t *testing.T) {
	file := t.TempDir() + "/chain"
	size, err := writeChain(file, 3)
	if err != nil {
		t.Fatal(err)
	}
	chain := newChain(3)
	if chain[0].PrevHash != "" || chain[2].PrevHash != chain[1].Hash || chain[2].Index != 2 {
		t.Errorf("the chain does not hang together: %+v", chain)
	}
	if size < 3*200 || size > 3*400 {
		t.Errorf("a broadcast of 3 blocks is %d bytes", size)
	}
}
