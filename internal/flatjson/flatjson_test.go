package flatjson

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

// thing is an object of the shape that read reads.
type thing struct {
	A int
	B string
	C int
}

func read(data string) (thing, error) {
	r := New([]byte(data))
	x := thing{A: r.Int(`{"A":`), B: r.String(`,"B":`), C: r.Int(`,"C":`)}
	return x, r.End("}")
}

// It reads what encoding/json writes of plain values.
func TestReadsWhatJSONWrites(t *testing.T) {
	for _, want := range []thing{
		{}, {1, "x", 2}, {math.MaxInt, "2026-11-22T14:05:39.283407618Z", math.MinInt}, {-1, " !#$%'()*+,-./:;=?@[]^_`{|}~", 10},
	} {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := read(string(data)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", data, got, err)
		}
	}
}

// Everything else is a fault, which says what was missing, and where.
func TestFaults(t *testing.T) {
	const good = `{"A":12,"B":"xy","C":3}`
	for cut := range len(good) {
		if got, err := read(good[:cut]); err == nil {
			t.Errorf("%q is taken for %+v", good[:cut], got)
		}
	}
	for _, bad := range []string{
		` ` + good, good + ` `, good + good, strings.Replace(good, ":", ": ", 1), strings.ToLower(good),
		strings.Replace(good, "12", "012", 1), strings.Replace(good, "12", "-0", 1), strings.Replace(good, "12", "+1", 1), strings.Replace(good, "12", "1.0", 1),
		strings.Replace(good, "12", "", 1), strings.Replace(good, "12", "1-2", 1), strings.Replace(good, "12", "9999999999999999999999", 1), strings.Replace(good, "12", "null", 1),
		strings.Replace(good, "xy", "\\u0078", 1), strings.Replace(good, "xy", "é", 1), strings.Replace(good, "xy", "\x00", 1), strings.Replace(good, "xy", "<", 1),
		strings.Replace(good, "xy", "\x7f", 1), strings.Replace(good, "xy", "\xff", 1), strings.Replace(good, `"xy"`, "null", 1), `{"B":"xy","A":12,"C":3}`,
	} {
		if got, err := read(bad); err == nil {
			t.Errorf("%q is taken for %+v", bad, got)
		}
	}
	if _, err := read(`{"A":12,"X":"xy","C":3}`); err == nil || err.Error() != `bad JSON: want ,"B":" at byte 8` {
		t.Errorf("the fault is %v", err)
	}
}

// FuzzRead: what it takes has one spelling, that of encoding/json.
func FuzzRead(f *testing.F) {
	f.Add(`{"A":12,"B":"xy","C":3}`)
	f.Fuzz(func(t *testing.T, data string) {
		if got, err := read(data); err == nil {
			if again, _ := json.Marshal(got); string(again) != data {
				t.Errorf("%q is taken for %s", data, again)
			}
		}
	})
}
