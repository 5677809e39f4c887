package linefile

import (
	"fmt"
	"strconv"
	"testing"
)

// A value has one spelling in a file.
func TestDecode(t *testing.T) {
	type line struct {
		Index, BPM int
		Notes      []string
	}
	const good = `{"Index":-1,"BPM":2147483647,"Notes":["a\u003cb"]}`
	var v line
	if err := Decode([]byte(good), &v); err != nil || v.Index != -1 || v.BPM != 2147483647 || v.Notes[0] != "a<b" {
		t.Errorf("%s is read as %v, %v", good, v, err)
	}
	wanted := "bad JSON: it should be "
	tooBig := fmt.Sprintf(" is no whole number of at most %d bits, which is what this build of the program takes", strconv.IntSize)
	for _, bad := range []struct{ line, why string }{
		{`{"Index": 1,"BPM":2,"Notes":null}`, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"Index":1,"BPM":2,"Notes":null} `, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"index":1,"BPM":2,"Notes":null}`, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"BPM":2,"Index":1,"Notes":null}`, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"Index":1,"BPM":2}`, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"Index":1,"BPM":2,"BPM":2,"Notes":null}`, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"Index":1,"BPM":2,"Notes":null,"More":3}`, wanted + `{"Index":1,"BPM":2,"Notes":null}`},
		{`{"Index":1,"BPM":-0,"Notes":["\u0061"]}`, wanted + `{"Index":1,"BPM":0,"Notes":["a"]}`},
		{"{\"Index\":1,\"BPM\":0,\"Notes\":[\"\xff\"]}", wanted + `{"Index":1,"BPM":0,"Notes":["�"]}`},
		{`null`, wanted + `{"Index":0,"BPM":0,"Notes":null}`},
		{``, "bad JSON: unexpected end of JSON input"},
		{`{}{}`, "bad JSON: invalid character '{' after top-level value"},
		{`{"Notes":[1]}`, "bad JSON: json: cannot unmarshal number into Go struct field line.Notes of type string"},
		{`{"Index":1,"BPM":9223372036854775808,"Notes":null}`, "bad JSON: BPM: the number 9223372036854775808" + tooBig},
		{`{"Index":1,"BPM":7.5,"Notes":null}`, "bad JSON: BPM: the number 7.5" + tooBig},
	} {
		if err := Decode([]byte(bad.line), new(line)); err == nil || err.Error() != bad.why {
			t.Errorf("of %s it says: %v; want: %s", bad.line, err, bad.why)
		}
	}
	// A build for 32 bits cannot read every chain of one for 64 bits, and says why.
	err := Decode([]byte(`{"Index":1,"BPM":2147483648,"Notes":null}`), new(line))
	if want := "bad JSON: BPM: the number 2147483648" + tooBig; strconv.IntSize == 32 && fmt.Sprint(err) != want || strconv.IntSize == 64 && err != nil {
		t.Errorf("a BPM of 2^31: %v", err)
	}
}
