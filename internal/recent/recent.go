// Package recent keeps the newest of a growing sequence of JSON values in the
// form in which they are sent: an array, encoded once and shared by all readers.
package recent

import "slices"

// Values is the newest part of a sequence. It has one owner; the bytes that
// Newest returns stay as they are and may be read by anybody for ever.
type Values struct {
	opening string // in front of the values
	limit   int
	array   []byte // the opening and the values, a comma between two; bytes once written never change
	starts  []int  // where in array each value starts; empty if limit is 0
	newest  []byte // what Newest returns; nil: to be made
}

// New keeps the newest limit values, 0: all, behind an opening such as "[".
func New(limit int, opening string) *Values {
	return &Values{opening: opening, limit: limit, array: []byte(opening)}
}

// Add appends an encoded value. It costs the length of the value: only once in
// limit values are the newest copied, so that the older ones can go.
func (v *Values) Add(value []byte) {
	if v.limit > 0 && len(v.starts) == 2*v.limit {
		cut := v.starts[v.limit]
		shift := cut - len(v.opening)
		// A new array: the old one may be on its way to somebody.
		v.array = append(append(make([]byte, 0, cap(v.array)), v.opening...), v.array[cut:]...)
		for i, start := range v.starts[v.limit:] {
			v.starts[i] = start - shift
		}
		v.starts = v.starts[:v.limit]
	}
	if len(v.array) > len(v.opening) {
		v.array = append(v.array, ',')
	}
	if v.limit > 0 {
		v.starts = append(v.starts, len(v.array))
	}
	v.array = append(v.array, value...)
	v.newest = nil
}

// Newest returns the opening and the newest values, a comma between two. It is
// made once for all calls between two Adds, without a copy if no value is left out.
func (v *Values) Newest() []byte {
	if v.newest == nil {
		v.newest = v.array[:len(v.array):len(v.array)]
		if n := len(v.starts); n > v.limit {
			v.newest = slices.Concat([]byte(v.opening), v.array[v.starts[n-v.limit]:])
		}
	}
	return v.newest
}
