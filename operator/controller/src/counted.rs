//! Counts every request to the API server on its way.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Method, Request, Response};
use tower::{Layer, Service};

use crate::metrics::{self, Metrics, Verb};

/// Counts what passes through it.
#[derive(Clone)]
pub(crate) struct Counted {
    pub(crate) metrics: Metrics,
}

/// A service whose requests are counted.
#[derive(Clone)]
pub(crate) struct CountedService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> Layer<S> for Counted {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountedService { inner, metrics: self.metrics.clone() }
    }
}

impl<S, B, R> Service<Request<B>> for CountedService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (verb, namespace, resource) =
            asked(request.method(), request.uri().path(), request.uri().query());
        let (answer, metrics, begin) =
            (self.inner.call(request), self.metrics.clone(), Instant::now());
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|it| it.status().as_u16());
            if verb == "watch" && code == Some(200) {
                metrics.watch_is_open(&namespace, &resource);
            }
            if verb != "watch" {
                let seconds = begin.elapsed().as_secs_f64();
                metrics.api_request_seconds.get_or_create(&Verb { verb }).observe(seconds);
            }
            let code = code.map_or_else(|| "none".to_owned(), |it| it.to_string());
            let request = metrics::Request { verb, resource, code };
            metrics.api_requests.get_or_create(&request).inc();
            answer
        })
    }
}

/// Verb, namespace and resource of a request, as RBAC has them.
fn asked(method: &Method, path: &str, query: Option<&str>) -> (&'static str, String, String) {
    let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    let after_version = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => &[],
    };
    let (namespace, resource, name) = match after_version {
        ["namespaces", namespace, plural, rest @ ..] => (*namespace, *plural, rest),
        [plural, rest @ ..] => ("", *plural, rest),
        [] => ("", "", &[][..]),
    };
    let resource = match name {
        [_, sub] => format!("{resource}/{sub}"),
        _ => resource.to_owned(),
    };
    let is_watch = query.unwrap_or_default().split('&').any(|it| it == "watch=true");
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET", true) if is_watch => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => "other",
    };
    (verb, namespace.to_owned(), resource)
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::asked;

    #[test]
    fn requests_are_told_as_rules_of_roles_have_them() {
        let asked = |method, path, query| asked(&method, path, query);
        for (found, verb, resource) in [
            (asked(Method::GET, "/api/v1/pods", Some("limit=500")), "list", "pods"),
            (
                asked(Method::GET, "/api/v1/namespaces/a/pods", Some("x=1&watch=true")),
                "watch",
                "pods",
            ),
            (asked(Method::GET, "/api/v1/namespaces/a/pods/b", None), "get", "pods"),
            (asked(Method::POST, "/api/v1/namespaces/a/secrets", None), "create", "secrets"),
            (asked(Method::DELETE, "/api/v1/namespaces/a/pods/b", None), "delete", "pods"),
            (
                asked(
                    Method::PATCH,
                    "/apis/ebbtide.dev/v1alpha1/namespaces/a/clusters/b/status",
                    None,
                ),
                "patch",
                "clusters/status",
            ),
            (
                asked(Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", None),
                "update",
                "leases",
            ),
            (asked(Method::GET, "/version", None), "list", ""),
        ] {
            assert_eq!((found.0, found.2.as_str()), (verb, resource));
        }
    }
}
