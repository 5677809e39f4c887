package env_test

import (
	"testing"
	"time"

	"proofofstake/internal/env"
)

// with is a Reader of NAME, which has this value.
func with(value string) *env.Reader {
	return env.New(func(name string) (string, bool) {
		if name != "NAME" {
			return "", false
		}
		return value, true
	})
}

// without is a Reader for whom nothing is set.
func without() *env.Reader { return env.New(func(string) (string, bool) { return "", false }) }

// check compares a result and the error with what they should be; no error: "".
func check[T comparable](t *testing.T, r *env.Reader, got, want T, wantErr string) {
	t.Helper()
	err := ""
	if r.Err() != nil {
		err = r.Err().Error()
	}
	if err != wantErr {
		t.Errorf("the error is %q, want %q", err, wantErr)
	}
	if wantErr == "" && got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// What is not set is what the caller says; what is set but empty is empty.
func TestString(t *testing.T) {
	r := without()
	check(t, r, r.String("NAME", "missing"), "missing", "")
	for _, value := range []string{"", "value", " with spaces "} {
		r := with(value)
		check(t, r, r.String("NAME", "missing"), value, "")
		check(t, r, r.String("OTHER", "missing"), "missing", "")
	}
}

// A duration is above 0 and has a unit.
func TestDuration(t *testing.T) {
	r := without()
	check(t, r, r.Duration("NAME", "30s"), 30*time.Second, "")
	for value, want := range map[string]time.Duration{
		"1ns": 1, "250ms": 250 * time.Millisecond, "1m30s": 90 * time.Second, "0.5s": time.Second / 2, "2h": 2 * time.Hour,
	} {
		r := with(value)
		check(t, r, r.Duration("NAME", "30s"), want, "")
	}
	for _, value := range []string{"", "0", "0s", "-1s", "30", "soon", " 30s", "30 s", "9999999h"} {
		r := with(value)
		check(t, r, r.Duration("NAME", "30s"), 0, `NAME="`+value+`" is not right: want a duration above 0, such as 30s`)
	}
}

// A count is a whole number from 0 on.
func TestCount(t *testing.T) {
	r := without()
	check(t, r, r.Count("NAME", "1000", "a number of blocks"), 1000, "")
	for value, want := range map[string]int{"0": 0, "1": 1, "007": 7, "2147483647": 1<<31 - 1} {
		r := with(value)
		check(t, r, r.Count("NAME", "1000", "a number of blocks"), want, "")
	}
	for _, value := range []string{"", "-1", "1.5", "1e3", "1_000", "0x10", " 1", "many", "9999999999999999999999"} {
		r := with(value)
		check(t, r, r.Count("NAME", "1000", "a number of blocks"), 0, `NAME="`+value+`" is not right: want a number of blocks`)
	}
}

// An address is a port, on all interfaces, or host:port.
func TestAddress(t *testing.T) {
	r := without()
	check(t, r, r.Address("NAME", "9000"), ":9000", "")
	for value, want := range map[string]string{
		"8080": ":8080", "0": ":0", "65535": ":65535", ":8080": ":8080",
		"127.0.0.1:8080": "127.0.0.1:8080", "localhost:8080": "localhost:8080", "[::1]:8080": "[::1]:8080",
	} {
		r := with(value)
		check(t, r, r.Address("NAME", "9000"), want, "")
	}
	for _, value := range []string{
		"", ":", "65536", "-1", "+1", "http", " 9000", "9000 ", "localhost", "localhost:", "localhost:http", "127.0.0.1:65536", "::1", "[::1]", "a:b:1",
	} {
		r := with(value)
		check(t, r, r.Address("NAME", "9000"), "",
			`NAME="`+value+`" is not right: want a port, such as 9000, or host:port, such as 127.0.0.1:9000`)
	}
}

// A bad value is quoted: it can do no harm to the terminal that shows it.
func TestErrorQuotes(t *testing.T) {
	r := with("\x1b[2J\"\n")
	check(t, r, r.Duration("NAME", "1s"), 0, `NAME="\x1b[2J\"\n" is not right: want a duration above 0, such as 1s`)
}

// The first bad value is the error, whatever is read before and after it.
func TestFirstError(t *testing.T) {
	values := map[string]string{"GOOD": "1", "BAD": "-1", "WORSE": "x"}
	r := env.New(func(name string) (string, bool) { v, ok := values[name]; return v, ok })
	count := func(name, wantErr string) {
		t.Helper()
		check(t, r, r.Count(name, "5", "a number"), 1, wantErr)
	}
	const first = `BAD="-1" is not right: want a number`
	count("GOOD", "")
	count("BAD", first)
	count("WORSE", first)
	count("GOOD", first)
	if got := r.Count("GOOD", "5", "a number"); got != 1 {
		t.Errorf("after a bad value, a good one is %d, want 1", got)
	}
}
