package assemble

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/plugin/api"
	"github.com/cleave-san/cleave/plugin/cli"
)

// nbdClients is how many clients one server has at once: each may hold
// nbd.MaxPayload of memory.
const nbdClients = 16

// serveNBD serves volumes by NBD until ctx ends.
func serveNBD(ctx context.Context, o cli.NBDOptions, ready func([]cli.NBDExport) error, log *slog.Logger) (err error) {
	var d disks
	defer func() { err = errors.Join(err, d.close()) }()
	exports, err := d.export(ctx, o, log)
	if err != nil {
		return err
	}
	options := nbd.ServerOptions{Connections: nbdClients, TLSOptional: o.TLS.Optional, Log: log}
	if o.TLS.Certificate != "" {
		if options.TLS, err = serverTLS(o.TLS); err != nil {
			return err
		}
	}
	s, err := nbd.NewServer(options, d.nbdExports(exports)...)
	if err != nil {
		return err
	}
	l, socket, remove, err := listenNBD(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	for i := range exports {
		if exports[i].Socket = socket; socket == "" {
			exports[i].Address = l.Addr().String()
		}
	}
	if err := ready(exports); err != nil {
		return errors.Join(err, l.Close())
	}
	return d.serveNBD(ctx, s, l)
}

// serveNBD serves until ctx ends or a device is lost, and makes what was written
// stable.
func (d *disks) serveNBD(ctx context.Context, s *nbd.Server, l net.Listener) error {
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	for _, dev := range d.devices {
		if c, ok := dev.(*nbd.Client); ok {
			go func() {
				select {
				case <-ctx.Done():
				case <-c.Done():
					lost(c.Err())
				}
			}()
		}
	}
	if d.over != nil {
		go func() {
			select {
			case <-ctx.Done():
			case <-d.over:
				lost(d.why())
			}
		}()
	}
	err := s.Serve(ctx, l)
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	for _, dev := range d.devices {
		if err == nil {
			err = dev.Sync()
		}
	}
	return err
}

// export opens what is to be served: as many devices as it returns exports.
func (d *disks) export(ctx context.Context, o cli.NBDOptions, log *slog.Logger) (exports []cli.NBDExport, err error) {
	switch {
	case o.Recovered:
		err = d.recover(ctx, cli.LUNOptions{Sources: o.Sources, Snapshots: o.Volumes, Overlay: o.Overlay, ReadOnly: !o.Writable})
		exports = wholeDisks(o)
	case o.Sources.Raw && len(o.Volumes) == 0:
		err = d.openRaw(ctx, o)
		exports = wholeDisks(o)
	default:
		exports, err = d.openVolumes(ctx, o)
	}
	for _, w := range d.warnings {
		log.Warn("what is served is read in spite of a warning", "warning", w)
	}
	if err != nil {
		return nil, err
	}
	for i := range exports {
		exports[i].Size, exports[i].Recovered = d.devices[i].Size(), d.recovered
	}
	return exports, nil
}

// wholeDisks are the exports of the sources as such, named as volumes are.
func wholeDisks(o cli.NBDOptions) []cli.NBDExport {
	var exports []cli.NBDExport
	for i, path := range o.Sources.Paths {
		name := "disk"
		if len(o.Sources.Paths) > 1 {
			name = strconv.Itoa(i+1) + ":disk"
		}
		exports = append(exports, cli.NBDExport{Name: name, Source: path, Writable: o.Writable})
	}
	return exports
}

// openRaw opens the sources' own bytes.
func (d *disks) openRaw(ctx context.Context, o cli.NBDOptions) error {
	for _, path := range o.Sources.Paths {
		if isLUN(path) {
			r, err := openLUN(ctx, path, o.Sources.Login, o.Writable)
			if err != nil {
				return err
			}
			d.devices, d.closers = append(d.devices, r), append(d.closers, r.Close)
			continue
		}
		f, err := claimDisk(path, o.Writable)
		if err != nil {
			return err
		}
		d.devices, d.closers = append(d.devices, f), append(d.closers, f.Close)
	}
	return nil
}

// openVolumes has a worker read volumes, those of whole disks if none is named.
func (d *disks) openVolumes(ctx context.Context, o cli.NBDOptions) (exports []cli.NBDExport, err error) {
	whole := wholeDisks(o)
	names := o.Volumes
	if len(names) == 0 {
		for _, e := range whole {
			names = append(names, e.Name)
		}
	}
	found, err := openDisks(ctx, o.Sources, names...)
	if err != nil {
		return nil, err
	}
	d.closers = append(d.closers, found.Close)
	d.warnings = append(d.warnings, found.Warnings...)
	for i, v := range found.Volumes {
		dev, err := v.Open(ctx)
		if err != nil {
			return nil, err
		}
		d.devices, d.closers = append(d.devices, dev), append(d.closers, dev.Close)
		e := cli.NBDExport{Name: v.Name}
		if len(o.Volumes) == 0 && i < len(whole) {
			e.Source = whole[i].Source
		}
		exports = append(exports, e)
	}
	return exports, nil
}

// nbdExports are the devices under their names, and one alone as the default
// export as well.
func (d *disks) nbdExports(exports []cli.NBDExport) []nbd.Export {
	var all []nbd.Export
	for i, e := range exports {
		all = append(all, nbd.Export{Name: e.Name, Description: e.Source, Device: d.devices[i], ReadOnly: !e.Writable})
	}
	if len(all) == 1 && all[0].Name != "" {
		alone := all[0]
		alone.Name = ""
		all = append(all, alone)
	}
	return all
}

// serverTLS reads the files of TLS.
func serverTLS(files cli.NBDTLS) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return nil, &hinted{usage("certificate %s with key %s: %w", files.Certificate, files.Key, err), "both are PEM; --tls-key names the key that belongs to the certificate"}
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if files.ClientCA == "" {
		return c, nil
	}
	b, err := os.ReadFile(files.ClientCA)
	if err != nil {
		return nil, &hinted{usage("authorities of clients: %w", err), "--tls-client-ca names a file of certificates, in PEM"}
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(b) {
		return nil, &hinted{usage("authorities of clients: there is no certificate in %s", files.ClientCA), "--tls-client-ca names a file of certificates, in PEM"}
	}
	return c, nil
}

// listenNBD listens as it was told, at a socket or else an address. remove takes
// away what was made for that.
func listenNBD(o cli.NBDOptions) (l net.Listener, socket string, remove func() error, err error) {
	remove = func() error { return nil }
	if o.Listen.IsValid() {
		l, err = net.Listen("tcp", o.Listen.String())
		return l, "", remove, err
	}
	socket = absolute(o.Socket)
	if o.Socket == "" {
		dir, err := os.MkdirTemp("", "cleave-nbd-")
		if err != nil {
			return nil, "", nil, fmt.Errorf("directory of the NBD socket: %w", err)
		}
		socket, remove = filepath.Join(dir, "socket"), func() error { return os.RemoveAll(dir) }
	}
	// The name that it has first is longer by a process number.
	if most := maxSocket - len(".4194304"); len(socket) > most {
		return nil, "", nil, errors.Join(usage("the socket's path %s has %d bytes, at most %d: give another with --socket", socket, len(socket), most), remove())
	}
	if l, err = api.Listen(socket); errors.Is(err, orchestrator.ErrBusy) {
		err = &hinted{err, "give another path with --socket"}
	}
	if err != nil {
		return nil, "", nil, errors.Join(err, remove())
	}
	return l, socket, remove, nil
}
