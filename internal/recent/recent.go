// Package recent keeps the newest of a growing sequence of JSON values in the
// form in which they are sent: the inside of an array, encoded once and shared by
// all readers.
package recent

// Values is the newest part of a sequence. It has one owner; the bytes that
// Newest returns stay as they are and may be read by anybody for ever.
type Values struct {
	limit  int
	array  []byte // the values, a comma between two; bytes once written never change
	starts []int  // where in array each value starts; empty if limit is 0
}

// New keeps the newest limit values; 0: all.
func New(limit int) *Values { return &Values{limit: limit} }

// Add appends an encoded value. It costs the length of the value: only once in
// limit values are the newest copied, so that the older ones can go.
func (v *Values) Add(value []byte) {
	if v.limit > 0 && len(v.starts) == 2*v.limit {
		v.starts = v.starts[v.limit:]
		cut := v.starts[0]
		// A new array: the old one may be on its way to somebody.
		v.array = append(make([]byte, 0, cap(v.array)), v.array[cut:]...)
		starts := make([]int, v.limit, 2*v.limit)
		for i, start := range v.starts {
			starts[i] = start - cut
		}
		v.starts = starts
	}
	if len(v.array) > 0 {
		v.array = append(v.array, ',')
	}
	if v.limit > 0 {
		v.starts = append(v.starts, len(v.array))
	}
	v.array = append(v.array, value...)
}

// Newest returns the newest values, a comma between two, without a copy.
func (v *Values) Newest() []byte {
	from := 0
	if n := len(v.starts); n > v.limit {
		from = v.starts[n-v.limit]
	}
	return v.array[from:len(v.array):len(v.array)]
}
