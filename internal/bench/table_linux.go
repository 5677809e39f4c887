package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one figure, measured several times.
type sample []float64

// median is the middle one; of an even number the mean of the middle two.
func (s sample) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return (sorted[(len(s)-1)/2] + sorted[len(s)/2]) / 2
}

// milliseconds adds d.
func (s *sample) milliseconds(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

// cell is the sample for the table: its median, and its spread if there is one.
func (s sample) cell() string {
	switch len(s) {
	case 0:
		return "-"
	case 1:
		return number(s[0])
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median()), number(slices.Min(s)), number(slices.Max(s)))
}

// number writes a number as a person reads it: three digits or more, with thousands
// set off.
func number(f float64) string {
	digits := 0
	if f > -10 && f < 10 {
		digits = 2
	} else if f > -100 && f < 100 {
		digits = 1
	}
	text := strconv.FormatFloat(f, 'f', digits, 64)
	whole, fraction, _ := strings.Cut(text, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction != "" {
		whole += "." + fraction
	}
	return whole
}

// row is a line of the table.
type row struct {
	group     int // rows of a group stand together
	what      string
	terminals int
	ours      sample
	floor     sample
	tutorial  sample
	base      sample // what ratio is to; nil: floor
	atMost    float64
	target    int // what atMost is about: see below
}

// What a row's target is about.
const (
	noTarget = iota
	ofOurs
	ofRatio
)

// ratio is ours to base, of the medians; false if there is none.
func (r row) ratio() (float64, bool) {
	base := r.base
	if base == nil {
		base = r.floor
	}
	if len(r.ours) == 0 || len(base) == 0 || base.median() == 0 {
		return 0, false
	}
	return r.ours.median() / base.median(), true
}

// verdict says whether the row meets its target.
func (r row) verdict() string {
	value := r.ours.median()
	switch r.target {
	case noTarget:
		return ""
	case ofRatio:
		var ok bool
		if value, ok = r.ratio(); !ok {
			return ""
		}
	}
	if value <= r.atMost {
		return fmt.Sprintf("≤ %g: met", r.atMost)
	}
	return fmt.Sprintf("≤ %g: missed", r.atMost)
}

// printTable prints rows in Markdown.
func printTable(w io.Writer, rows []row) {
	fmt.Fprint(w, "| | terminals | this server | floor | tutorial's way | ratio | target |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |\n")
	for _, r := range rows {
		ratio := "-"
		if f, ok := r.ratio(); ok {
			ratio = number(f)
			if r.base != nil {
				ratio += " of the row above"
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n",
			r.what, number(float64(r.terminals)), r.ours.cell(), r.floor.cell(), r.tutorial.cell(), ratio, r.verdict())
	}
}
