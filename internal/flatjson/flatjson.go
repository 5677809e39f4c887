// Package flatjson reads JSON objects of one known shape: integers and plain
// strings under known keys in a known order, without spaces, exactly as
// encoding/json writes them. It takes nothing else, so that an object has one
// spelling only, and is several times as fast as a decoder that takes all of JSON.
package flatjson

import (
	"bytes"
	"fmt"
	"strconv"
)

// Reader reads one object from left to right. After a fault it returns zero
// values; End tells.
type Reader struct {
	data []byte
	at   int
	err  error
}

// New reads the object in data.
func New(data []byte) *Reader { return &Reader{data: data} }

// Literal reads what must stand there to the letter: keys and punctuation.
func (r *Reader) Literal(want string) {
	if r.err != nil {
		return
	}
	if !bytes.HasPrefix(r.data[r.at:], []byte(want)) {
		r.fail(want)
		return
	}
	r.at += len(want)
}

// Int reads an integer behind the literal before.
func (r *Reader) Int(before string) int {
	r.Literal(before)
	if r.err != nil {
		return 0
	}
	end := r.at
	for end < len(r.data) && (r.data[end] == '-' || '0' <= r.data[end] && r.data[end] <= '9') {
		end++
	}
	i, err := strconv.Atoi(string(r.data[r.at:end]))
	if err != nil || strconv.Itoa(i) != string(r.data[r.at:end]) { // such as 007 or -0
		r.fail("a whole number")
		return 0
	}
	r.at = end
	return i
}

// String reads a string behind the literal before. Its characters are those of
// ASCII that encoding/json writes as they are.
func (r *Reader) String(before string) string {
	r.Literal(before + `"`)
	if r.err != nil {
		return ""
	}
	for i, c := range r.data[r.at:] {
		switch {
		case c == '"':
			s := string(r.data[r.at : r.at+i])
			r.at += i + 1
			return s
		case c < ' ', c > '~', c == '\\', c == '<', c == '>', c == '&':
			r.at += i
			r.fail("a plain character")
			return ""
		}
	}
	r.at = len(r.data)
	r.fail(`"`)
	return ""
}

// End reads the literal last, which must be the end of the data. It returns the
// first fault: what was missing, and at which byte, counted from 1.
func (r *Reader) End(last string) error {
	r.Literal(last)
	if r.err == nil && r.at < len(r.data) {
		r.fail("the end of the line")
	}
	return r.err
}

// fail notes that want was missing.
func (r *Reader) fail(want string) {
	r.err = fmt.Errorf("bad JSON: want %s at byte %d", want, r.at+1)
}
