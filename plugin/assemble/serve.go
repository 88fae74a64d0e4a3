package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cleave-san/cleave/lun/attach"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/hostvolume"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/plugin/api"
	"github.com/cleave-san/cleave/plugin/cli"
)

// Serve runs the control plane until ctx ends. When it returns everything is
// closed; sets that were ready stay so, and sets that were under way are undone
// at its next start.
func Serve(ctx context.Context, o cli.ServeOptions, release string, getenv func(string) string, log *slog.Logger) (err error) {
	c, err := Load(o.Config, getenv)
	if err != nil {
		return err
	}
	if o.Socket != "" {
		c.Socket = o.Socket
	}
	// The socket comes first: a second control plane ends here, before it has
	// touched anything.
	l, err := api.Listen(c.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	if o.WithArray {
		stop, err := superviseArray(ctx, o.Config, c.DataPlane.Socket, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	s, closeService, err := Service(ctx, c, release, getenv, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeService()) }()
	log.Info("control plane is up", "socket", c.Socket, "release", release)
	return api.Serve(ctx, l, api.Handler(s, release, log), log)
}

// Service makes the control plane's Service from a configuration; what an
// earlier process left is being given back when it returns. The caller calls
// done in the end.
func Service(ctx context.Context, c Config, release string, getenv func(string) string, log *slog.Logger) (_ orchestrator.Service, done func() error, err error) {
	var closers []func() error
	closeAll := func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()

	spans, stop, err := tracing(ctx, release, getenv)
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, stop)
	tracer := spans.Tracer("github.com/cleave-san/cleave")

	writers, err := openWriters(c.Writers, log)
	if err != nil {
		return nil, nil, err
	}
	storage, pub, ends, err := openArrays(ctx, c.Arrays, tracer, log)
	closers = append(closers, ends...)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, nil, fmt.Errorf("state directory: %w", err)
	}
	recoverer, err := newViews(c.State, c.Recovery)
	if err != nil {
		return nil, nil, err
	}
	attached, err := openAttachments(attach.Options{}, log)
	if err != nil {
		return nil, nil, err
	}
	j, err := journal.OpenBolt(filepath.Join(c.State, "journal.db"))
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, j.Close)
	e, err := engine.New(engine.Config{
		Journal: j, Writers: writers, Arrays: storage, Publisher: pub, Recoverer: recoverer, Attachments: attached,
		HostVolumes: hostvolume.New(attachedOf(attached)), Hosts: c.hosts(), Initiator: thisHost(log), Tracer: tracer, Logger: log,
	})
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, func() error { e.Close(); return nil })
	return withPolicy{Service: e, policy: c.Policy}, closeAll, nil
}
