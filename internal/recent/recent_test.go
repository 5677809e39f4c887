package recent

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

// For any sequence and limit, Newest is the last values, joined; and what it
// returned stays as it was, whatever is added later.
func TestNewest(t *testing.T) {
	for limit := range 6 {
		t.Run(fmt.Sprint("limit ", limit), func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, uint64(limit)))
			for range 50 {
				v := New(limit, "[")
				var all []string
				type returned struct {
					bytes []byte
					want  string
				}
				earlier := []returned{{v.Newest(), "["}}
				for range random.IntN(60) {
					value := strings.Repeat(fmt.Sprint(len(all)%10), 1+random.IntN(20))
					v.Add([]byte(value))
					all = append(all, value)
					newest := all
					if limit > 0 {
						newest = all[max(len(all)-limit, 0):]
					}
					earlier = append(earlier, returned{v.Newest(), "[" + strings.Join(newest, ",")})
				}
				for i, r := range earlier {
					if string(r.bytes) != r.want {
						t.Fatalf("after %d of %d values it is %s, want %s", i, len(all), r.bytes, r.want)
					}
				}
			}
		})
	}
}

// Whoever appends to what Newest returned gets a copy, and who reuses a value
// that was added changes nothing.
func TestNotShared(t *testing.T) {
	for _, limit := range []int{0, 1, 3} {
		v := New(limit, "[")
		value := []byte("1")
		for range 10 {
			v.Add(value)
		}
		value[0] = 'x'
		before := v.Newest()
		want := string(before)
		_ = append(before, ",y"...)
		if got := string(v.Newest()); got != want {
			t.Errorf("limit %d: it is %s, want %s", limit, got, want)
		}
		v.Add([]byte("2"))
		_ = append(before, ",z"...)
		if got := string(v.Newest()); !strings.HasSuffix(got, "2") {
			t.Errorf("limit %d: it is %s, want 2 at its end", limit, got)
		}
	}
}

// Readers may read what Newest returned while its owner goes on. (The race
// detector is what can fail here.)
func TestReadersAndOwner(t *testing.T) {
	for _, limit := range []int{0, 1, 4} {
		v := New(limit, "[")
		var readers sync.WaitGroup
		for i := range 200 {
			v.Add(fmt.Append(nil, i))
			newest := v.Newest()
			readers.Go(func() {
				if !bytes.HasSuffix(newest, fmt.Append(nil, i)) {
					t.Errorf("limit %d: after %d it is %s", limit, i, newest)
				}
			})
		}
		readers.Wait()
	}
}

// With a limit, the memory is that of 2*limit values, however many are added.
func TestOldValuesGo(t *testing.T) {
	const limit, size = 10, 100
	v := New(limit, "[")
	for range 10_000 {
		v.Add(bytes.Repeat([]byte("1"), size))
		if n := cap(v.array); n > 2*(2*limit*(size+1)) { // append takes up to twice what it needs
			t.Fatalf("%d values of %d bytes take %d bytes", limit, size, n)
		}
		if n := cap(v.starts); n > 4*limit {
			t.Fatalf("%d values take %d starts", limit, n)
		}
	}
}
