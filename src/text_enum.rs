//! Enums that are stored and sent as strings, the same in JSON and in Postgres.

/// The error for a string that is not a value of an enum.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{value}' is not one of {}", .expected.join(", "))]
pub struct UnknownValue {
    pub value: String,
    pub expected: &'static [&'static str],
}

/// Defines an enum whose variants have string values. The doc comment of the enum becomes its description in the OpenAPI
/// document. In Postgres, a column that stores the enum has the type `text` and a CHECK constraint that lists the values. A test
/// compares each such constraint with [`VALUES`](#associatedconstant.VALUES).
macro_rules! text_enum {
    (
        $(#[doc = $doc:literal])*
        $vis:vis enum $Name:ident { $($(#[$variant_meta:meta])* $Variant:ident = $value:literal,)+ }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        $vis enum $Name {
            $($(#[$variant_meta])* #[serde(rename = $value)] $Variant,)+
        }

        impl $Name {
            /// All values, in the order of their definition.
            $vis const VALUES: &'static [&'static str] = &[$($value),+];

            $vis const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Variant => $value,)+
                }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $Name {
            type Err = $crate::text_enum::UnknownValue;

            fn from_str(value: &str) -> Result<Self, Self::Err> {
                match value {
                    $($value => Ok(Self::$Variant),)+
                    _ => Err($crate::text_enum::UnknownValue { value: value.to_owned(), expected: Self::VALUES }),
                }
            }
        }

        // `derive(ToSchema)` cannot read a `serde(rename)` whose value comes from a macro.
        impl utoipa::PartialSchema for $Name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some(concat!($($doc),*).trim()))
                    .enum_values(Some(Self::VALUES.iter().copied()))
                    .into()
            }
        }

        impl utoipa::ToSchema for $Name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($Name).into()
            }
        }

        impl sqlx::Type<sqlx::Postgres> for $Name {
            fn type_info() -> sqlx::postgres::PgTypeInfo {
                <str as sqlx::Type<sqlx::Postgres>>::type_info()
            }

            fn compatible(ty: &sqlx::postgres::PgTypeInfo) -> bool {
                <str as sqlx::Type<sqlx::Postgres>>::compatible(ty)
            }
        }

        impl sqlx::postgres::PgHasArrayType for $Name {
            fn array_type_info() -> sqlx::postgres::PgTypeInfo {
                <&str as sqlx::postgres::PgHasArrayType>::array_type_info()
            }
        }

        impl sqlx::Encode<'_, sqlx::Postgres> for $Name {
            fn encode_by_ref(
                &self,
                buf: &mut sqlx::postgres::PgArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                sqlx::Encode::<sqlx::Postgres>::encode_by_ref(&self.as_str(), buf)
            }
        }

        impl<'r> sqlx::Decode<'r, sqlx::Postgres> for $Name {
            fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                Ok(<&str as sqlx::Decode<sqlx::Postgres>>::decode(value)?.parse()?)
            }
        }
    };
}

pub(crate) use text_enum;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use utoipa::PartialSchema;

    text_enum! {
        /// A color.
        enum Color {
            Red = "red",
            DarkBlue = "dark_blue",
        }
    }

    #[test]
    fn values_are_the_same_in_all_encodings() {
        assert_eq!(Color::VALUES, ["red", "dark_blue"]);
        assert_eq!(Color::DarkBlue.to_string(), "dark_blue");
        assert_eq!("dark_blue".parse(), Ok(Color::DarkBlue));
        assert_eq!(serde_json::to_string(&Color::DarkBlue).unwrap(), r#""dark_blue""#);
        assert_eq!(serde_json::from_str::<Color>(r#""red""#).unwrap(), Color::Red);
        let schema = json!({"type": "string", "description": "A color.", "enum": ["red", "dark_blue"]});
        assert_eq!(serde_json::to_value(Color::schema()).unwrap(), schema);
        assert_eq!("Red".parse::<Color>().unwrap_err().to_string(), "'Red' is not one of red, dark_blue");
    }
}
