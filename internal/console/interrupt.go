package console

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Context returns a context that is canceled by SIGINT (Ctrl-C), SIGTERM, or SIGHUP (the window was closed). Under
// nohup, SIGHUP is ignored. A second signal ends the process immediately. A closed console does not end it.
func Context() context.Context {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	if signal.Ignored(syscall.SIGHUP) {
		signals = signals[:2]
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)
	signal.Ignore(syscall.SIGPIPE)
	return ctx
}
