// Package env reads settings from variables, with errors that say what would
// be right.
package env

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Reader reads variables. It goes on after a bad value; the first one is its Err.
type Reader struct {
	lookup func(name string) (value string, ok bool)
	err    error
}

// New reads variables with lookup, such as os.LookupEnv.
func New(lookup func(name string) (value string, ok bool)) *Reader { return &Reader{lookup: lookup} }

// Err names the first variable with a bad value, the value and what would be
// right; nil if there is none.
func (r *Reader) Err() error { return r.err }

// String returns the value of name, or missing if it is not set. An empty value
// is a value.
func (r *Reader) String(name, missing string) string {
	if value, ok := r.lookup(name); ok {
		return value
	}
	return missing
}

// Duration returns the value of name, which must be above 0.
func (r *Reader) Duration(name, missing string) time.Duration {
	value := r.String(name, missing)
	d, err := time.ParseDuration(value)
	r.check(err == nil && d > 0, name, value, "a duration above 0, such as "+missing)
	return d
}

// Count returns the value of name, a whole number that is not negative.
// Its error calls what is counted by its name.
func (r *Reader) Count(name, missing, what string) int {
	value := r.String(name, missing)
	n, err := strconv.Atoi(value)
	r.check(err == nil && n >= 0, name, value, what)
	return n
}

// Address returns the value of name, a port or host:port, as host:port.
func (r *Reader) Address(name, missing string) string {
	value := r.String(name, missing)
	addr := value
	if !strings.Contains(addr, ":") {
		addr = ":" + addr
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	r.check(err == nil, name, value, "a port, such as "+missing+", or host:port, such as 127.0.0.1:"+missing)
	return addr
}

// check notes a value that is not right.
func (r *Reader) check(right bool, name, value, want string) {
	if !right && r.err == nil {
		r.err = fmt.Errorf("%s=%q is not right: want %s", name, value, want)
	}
}
