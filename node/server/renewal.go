package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/transport"
	"k8s.io/klog/v2"
)

const (
	// lookEvery is how often the certificates are looked at. A look takes a few milliseconds.
	lookEvery = time.Minute
	// repeatEvery is how often the same problem is told again.
	repeatEvery = 24 * time.Hour
	// authorityWarning is how long before an authority's end it is told, for which there is no remedy but a new cluster.
	authorityWarning = 365 * 24 * time.Hour
	// startAgainBefore is how long before the end of the API server's certificate for itself the server ends, to be
	// started again with a new one.
	startAgainBefore = 30 * 24 * time.Hour
)

// haveClientsLook has the clients of this process that hold a connection open look for a renewed certificate well
// before the one of before has ended. With the usual life nothing is changed: upstream looks every five minutes.
func haveClientsLook(life time.Duration) {
	transport.CertCallbackRefreshDuration = min(transport.CertCallbackRefreshDuration, life/20)
}

// certificates renews by the wall clock, at which it looks again and again: a timer until the earliest end would know
// nothing of a machine that was suspended or restored, or whose clock was set. Everybody who uses a certificate looks
// for the new one: the servers (apiserver's dynamiccertificates) and the clients (client-go's
// transport/cert_rotation.go).
func (c *components) certificates(ctx context.Context) error {
	every := min(lookEvery, c.pki.life/20)
	var told teller
	wait.UntilWithContext(ctx, func(context.Context) { told.tell(c.pki.look()) }, every)
	return nil
}

// apiServerAgain ends while there is time: of all certificates only the one that the API server makes for itself, at
// its start, can't be renewed while it runs. The supervisor starts the server again, and pods live on.
func (c *components) apiServerAgain(ctx context.Context) error {
	end, err := loopbackEnd(ctx, c.config)
	if err != nil {
		klog.ErrorS(err, "it is not known when the API server's certificate for itself ends")
		<-ctx.Done()
		return nil
	}
	if err := endBefore(ctx, end); err != nil {
		c.cancel(err) // which is as it should be
	}
	return nil
}

func endBefore(ctx context.Context, end time.Time) error {
	err := wait.PollUntilContextCancel(ctx, lookEvery, true, func(context.Context) (bool, error) {
		return time.Until(end) < startAgainBefore, nil
	})
	if err != nil {
		return nil // the server ends
	}
	return fmt.Errorf("the API server's certificate for itself ends on %s, and a new one takes a new start", end)
}

// look renews what has to be, and returns what nobody but an administrator can help with.
func (p pki) look() error {
	if err := p.ensure(); err != nil {
		return err
	}
	for _, name := range []string{serverCA, clientCA, requestHeaderCA} {
		certificate, err := readCertificate(p.cert(name))
		if err != nil {
			return err
		}
		if time.Until(certificate.NotAfter) < authorityWarning {
			return fmt.Errorf("%s ends on %s, and the cluster with it: make a new one before",
				p.cert(name), certificate.NotAfter)
		}
	}
	return nil
}

// teller logs a problem when it comes up, and once a day while it lasts.
type teller struct {
	problem string
	at      time.Time
}

func (t *teller) tell(problem error) {
	if problem == nil {
		*t = teller{}
		return
	}
	if problem.Error() == t.problem && time.Since(t.at) < repeatEvery {
		return
	}
	t.problem, t.at = problem.Error(), time.Now()
	klog.ErrorS(problem, "certificates")
}

// loopbackEnd is when the certificate ends with which the API server serves its own calls: upstream makes it in memory
// at the start, for three years, and has no way to renew it (apiserver's server/options/serving_with_loopback.go).
func loopbackEnd(ctx context.Context, c *Config) (time.Time, error) {
	// It is told apart by the name that is asked for, and known to the server's own clients only.
	settings := &tls.Config{ServerName: server.LoopbackClientServerNameOverride, InsecureSkipVerify: true}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: settings}
	connection, err := dialer.DialContext(ctx, "tcp", c.localAddress())
	if err != nil {
		return time.Time{}, err
	}
	defer connection.Close()
	certificate := connection.(*tls.Conn).ConnectionState().PeerCertificates[0]
	if err := certificate.VerifyHostname(server.LoopbackClientServerNameOverride); err != nil {
		return time.Time{}, err
	}
	return certificate.NotAfter, nil
}
